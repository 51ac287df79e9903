"""Pruning a model in place: which weights, what stays, and all or nothing."""

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from safetensors.torch import save_file
from spectral_kernels import stream_id
from torch import nn

import spectral_engine as se

BY_ROW = se.Uniform(group="row")


class Net(nn.Module):
    """One of each: convolutions, linear layers, what is not pruned, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(12, 8)
        self.conv1 = nn.Conv1d(4, 6, 3)
        self.conv2 = nn.Conv2d(4, 6, 3, groups=2)
        self.conv3 = nn.Conv3d(2, 4, 2)
        self.up = nn.ConvTranspose2d(3, 3, 3)
        self.norm = nn.BatchNorm2d(6)
        self.lstm = nn.LSTM(5, 4)
        self.attention = nn.MultiheadAttention(8, 2)
        self.free = nn.Parameter(torch.randn(3, 3))
        self.head = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))


GATES = [
    f"lstm.weight_{of}_l0[{gate}]"
    for of in ("ih", "hh")
    for gate in ("input", "forget", "cell", "output")
]
PRUNED = [
    "conv1.weight", "conv2.weight", "conv3.weight", "up.weight", *GATES,
    *(f"attention.in_proj_weight[{part}]" for part in "qkv"), "attention.out_proj.weight",
    "head.0.weight", "head.2.weight",
]  # fmt: skip
LEFT = ["embed.weight", "free"]


def two(**options) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 8, **options), nn.Linear(8, 8, **options))


def names(report: se.PruneReport) -> list[str]:
    return [layer.name for layer in report.layers]


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_every_weight_is_pruned_or_listed():
    """Catches a kind of layer forgotten, or a matrix that is left alone without a word."""
    model = Net()
    before = state(model)
    report = se.prune(model, sparsity=0.5)
    assert names(report) == PRUNED
    assert sorted(skipped.name for skipped in report.skipped) == sorted(LEFT)
    reasons = {skipped.name: skipped.reason for skipped in report.skipped}
    assert reasons["embed.weight"] == "an embedding; name it in targets to prune it"
    assert reasons["free"] == "Net.free is not seen as a matrix"
    pruned = {name.partition("[")[0] for name in PRUNED}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in pruned), name
    for layer in report.layers:
        if "[" not in layer.name:
            weight = model.get_parameter(layer.name)
            assert layer.shape == tuple(weight.shape)
            assert layer.nnz == int((weight != 0).sum()) == weight.numel() - weight.numel() // 2
    for name in ("conv1.weight", "conv3.weight", "head.0.weight"):
        expected = se.sparsify(before[name], sparsity=0.5).weight
        assert torch.equal(model.get_parameter(name), expected)


def test_parameters_stay_what_they_are():
    """Catches a weight that is replaced, so that the optimizer goes on with the old one; or
    requires_grad, the training mode or the dtype lost."""
    model = Net().to(torch.bfloat16).train()
    model.head[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: (id(p), p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    version = model.head[2].weight._version
    se.prune(model, "randomized", 0.5)
    assert before == {
        name: (id(p), p.dtype, p.requires_grad) for name, p in model.named_parameters()
    }
    assert all(p.grad_fn is None for p in model.parameters())
    assert model.training
    assert model.head[2].weight._version > version  # autograd notices a stale backward pass
    model.head(torch.ones(2, 8, dtype=torch.bfloat16)).sum().backward()
    pruned = model.head[2].weight.detach().clone()
    optimizer.step()
    assert not torch.equal(model.head[2].weight, pruned)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"targets": "Linear"}, ["attention.out_proj.weight", "head.0.weight", "head.2.weight"]),
        ({"targets": "head.*"}, ["head.0.weight", "head.2.weight"]),
        ({"targets": "head.0"}, ["head.0.weight"]),
        ({"targets": "head.0.weight"}, ["head.0.weight"]),
        ({"targets": r"re:head\.[01]"}, ["head.0.weight"]),
        ({"targets": r"re:hea"}, None),
        ({"targets": ("Conv1d", "conv3")}, ["conv1.weight", "conv3.weight"]),
        ({"targets": {"Conv?d"}}, None),
        ({"ignore": ["Linear", "conv[12]", "lstm", "attention"]}, ["conv3.weight", "up.weight"]),
        ({"targets": ["lstm.*"], "ignore": "lstm.weight_ih_l0"}, GATES[4:]),
        ({"targets": "lstm.weight_ih_l0[cell]"}, ["lstm.weight_ih_l0[cell]"]),
        ({"targets": r"re:.*\[cell\]"}, ["lstm.weight_ih_l0[cell]", "lstm.weight_hh_l0[cell]"]),
        ({"targets": "Linear", "ignore": ["head.*"]}, ["attention.out_proj.weight"]),
        ({"targets": "Module", "ignore": "_ConvNd"}, ["embed.weight", *PRUNED[4:]]),
        ({"targets": []}, None),
        ({"targets": "linear"}, None),
        ({"targets": "Embedding"}, ["embed.weight"]),
        ({"targets": "free"}, None),
    ],
)
def test_patterns(options, expected):
    """Catches a kind of pattern that does not match, matches a part, or ignores case."""
    model = Net()
    before = state(model)
    if expected is None:
        with pytest.raises(ValueError, match="targets: no prunable weight is left"):
            se.prune(model, **options)
        assert same(before, state(model))
    else:
        report = se.prune(model, **options)
        assert names(report) == expected
        # A parameter of which no part is pruned is listed as one.
        parts = {name.partition("[")[0] for name in expected}
        left = {name if name.partition("[")[0] in parts else name.partition("[")[0]
                for name in (*PRUNED, *LEFT)}  # fmt: skip
        assert {skipped.name for skipped in report.skipped} == left - {*expected}
        assert report.unmatched == []


def test_mistyped_pattern_is_reported():
    """Catches a mistyped `ignore`, which would let the weight it meant be pruned unseen."""
    report = se.prune(two(), targets=["Linear", "nope"], ignore=["clasifier", "1"])
    assert report.unmatched == ["targets 'nope'", "ignore 'clasifier'"]
    assert "matched no weight: ignore 'clasifier'" in str(report)


@pytest.mark.parametrize("argument", ["targets", "ignore"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (["0", "re:("], ValueError, r"regular expression after 're:'; got 're:\('"),
        (3, TypeError, "expected a string or a list of strings; got 3"),
        ([3], TypeError, r"expected a string or a list of strings; got \[3\]"),
        (b"x", TypeError, "expected a string"),
    ],
)
def test_bad_pattern(argument, value, error, message):
    """Catches a bad pattern that goes unseen behind one that matches first."""
    with pytest.raises(error, match=f"{argument}: .*{message}"):
        se.prune(two(), **{argument: value})


class Tied(nn.Module):
    """An embedding and a head of one weight, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(10, 8)
        self.middle = nn.Linear(8, 8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.wte.weight


def test_shared_weight_is_pruned_once():
    """Catches a shared weight that is drawn twice, which keeps a share squared and rescales
    twice: through one parameter, one module, or one memory."""
    tied = Tied()
    layer = nn.Linear(8, 8)
    again = nn.Linear(8, 8)
    again.weight.data = layer.weight.data
    for model, name, shared in (
        (tied, "head.weight", ("wte.weight",)),
        (nn.Sequential(layer, nn.ReLU(), layer), "0.weight", ("2.weight",)),
        (nn.Sequential(again, layer), "0.weight", ("1.weight",)),
    ):
        before = model.get_parameter(name).detach().clone()
        report = se.prune(model, "randomized", 0.5, targets="*")
        [row] = [row for row in report.layers if row.name == name]
        assert row.shared_with == shared
        assert not {skipped.name for skipped in report.skipped} & {name, *shared}
        expected = se.sparsify(before, "randomized", 0.5, stream=stream_id(name)).weight
        assert torch.equal(model.get_parameter(name), expected)
    assert tied.head.weight is tied.wte.weight


@pytest.mark.parametrize("pattern", ["head", "wte", "Embedding", "wte.weight", "re:wte"])
def test_a_head_tied_to_an_embedding_stays(pattern):
    """Catches an embedding pruned through the output head that shares its memory: a language model
    lost twice as much that way as without, and files and models judged it differently."""
    model = Tied()
    before = model.wte.weight.detach().clone()
    report = se.prune(model, sparsity=0.5)
    assert names(report) == ["middle.weight"]
    assert {one.name: one.reason for one in report.skipped} == {
        "head.weight": "an embedding; name it in targets to prune it"
    }
    assert torch.equal(model.wte.weight, before)
    assert "head.weight" in names(se.prune(model, sparsity=0.5, targets=["*", pattern]))


@pytest.mark.parametrize("pattern", ["head", "wte", "Embedding", "wte.weight", "re:wte"])
def test_shared_weight_is_ignored_under_any_name(pattern):
    """Catches a weight that is pruned though one of its names is to be left alone."""
    model = Tied()
    before = model.wte.weight.detach().clone()
    report = se.prune(model, sparsity=0.5, targets="*", ignore=pattern)
    assert names(report) == ["middle.weight"]
    assert [skipped.name for skipped in report.skipped] == ["head.weight"]
    assert torch.equal(model.wte.weight, before)
    assert names(se.prune(Tied(), targets=pattern)) == ["head.weight"]


def test_reparametrised_weights_are_listed():
    """Catches a weight that is computed from others: its ingredients must not go unseen."""
    masked, normed = nn.Linear(4, 4), nn.Linear(4, 4)
    torch.nn.utils.prune.l1_unstructured(masked, "weight", 0.5)
    normed = nn.utils.parametrizations.weight_norm(normed)
    report = se.prune(nn.Sequential(masked, normed, nn.Linear(4, 4)))
    assert names(report) == ["2.weight"]
    assert {skipped.name for skipped in report.skipped} == {
        "0.weight_orig",
        "1.parametrizations.weight.original0",
        "1.parametrizations.weight.original1",
    }


def spoil_nan(layer):
    layer.weight.data[-1, -1] = float("nan")


def spoil_inf(layer):
    layer.weight.data[-1, -1] = float("inf")


def spoil_meta(layer):
    layer.weight = nn.Parameter(torch.empty(8, 8, device="meta"))


def spoil_integer(layer):
    layer.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)


def spoil_float8(layer):
    layer.weight = nn.Parameter(torch.ones(8, 8).to(torch.float8_e4m3fn))


def spoil_empty(layer):
    layer.weight = nn.Parameter(torch.ones(0, 8))


def spoil_range(layer):
    layer.weight = nn.Parameter(torch.full((8, 8), 1e300, dtype=torch.float64))


def spoil_zeros(layer):
    nn.init.zeros_(layer.weight)


def spoil_half(layer):
    layer.weight = nn.Parameter(torch.full((8, 8), 6e4, dtype=torch.float16))


@pytest.mark.parametrize(
    ("spoil", "method", "message"),
    [
        (spoil_nan, "magnitude", "model: 1.weight holds NaN"),
        (spoil_inf, "magnitude", "model: 1.weight holds NaN, infinity"),
        (spoil_meta, "magnitude", "model: 1.weight is on the meta device"),
        (spoil_integer, "magnitude", "model: 1.weight: expected dtype.*int8"),
        (spoil_float8, "magnitude", "model: 1.weight: expected dtype.*float8_e4m3fn"),
        (spoil_empty, "magnitude", r"model: 1.weight: .*\(0, 8\)"),
        (spoil_range, "magnitude", "model: 1.weight holds .*too large for float32"),
        (spoil_zeros, "magnitude", "model: 1.weight is all zeros"),
        (spoil_half, "randomized", "model: 1.weight: rescale: .*overflow float16"),
    ],
)
def test_a_bad_last_layer_leaves_the_model_untouched(spoil, method, message):
    """Catches weights that are pruned before a later one is refused."""
    model = two()
    spoil(model[1])
    before = model[0].weight.detach().clone()
    with pytest.raises((ValueError, TypeError), match=message):
        se.prune(model, method, 0.9)
    assert torch.equal(model[0].weight, before)
    se.prune(model, method, 0.9, ignore="1")


def test_lazy_layer_is_refused():
    """Catches a layer that has no weight yet and is taken for one without."""
    with pytest.raises(ValueError, match=r"model: 1.weight has no shape yet"):
        se.prune(nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(3)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sparsity": 1.0}, ValueError, "sparsity: "),
        ({"recipe": "nope"}, ValueError, "recipe: "),
        ({"recipe": ["magnitude", 3]}, TypeError, "recipe: "),
        ({"recipe": "wanda"}, ValueError, "calibration: 'wanda' needs calibration inputs"),
        ({"seed": -1}, ValueError, "seed: "),
        ({"seed": 1.5}, TypeError, "seed: "),
        ({"measure": "yes"}, TypeError, "measure: expected True or False"),
        ({"progress": 3}, TypeError, "progress: expected True"),
        ({"masks": 1}, TypeError, "masks: expected True or False; got 1"),
        ({"model": torch.ones(3, 3)}, TypeError, "model: expected a torch.nn.Module; got Tensor"),
        ({"model": nn.ReLU()}, ValueError, "targets: no prunable weight is left"),
    ],
)
def test_bad_arguments(options, error, message):
    """Catches a mistake that shows only once something has been changed."""
    model = two()
    before = state(model)
    with pytest.raises(error, match=message):
        se.prune(**{"model": model, **options})
    assert same(before, state(model))


def test_draws_follow_seed_and_name():
    """Catches layers that share their draws, a seed that is ignored, and draws that depend on the
    order of the layers or on what else is pruned."""

    def masks(model, seed=0, **options):
        nn.init.ones_(model["a"].weight)
        nn.init.ones_(model["b"].weight)
        se.prune(model, "randomized", 0.5, seed=seed, **options)
        return {name: layer.weight.detach() != 0 for name, layer in model.items()}

    def make(order="ab"):
        return nn.ModuleDict({name: nn.Linear(16, 16) for name in order})

    first = masks(make())
    assert not torch.equal(first["a"], first["b"])
    for other in (masks(make()), masks(make("ba"))):
        assert torch.equal(first["a"], other["a"])
        assert torch.equal(first["b"], other["b"])
    assert torch.equal(first["b"], masks(make(), targets="b")["b"])
    assert not torch.equal(first["a"], masks(make(), seed=1)["a"])


def test_rank_is_cut_to_small_layers():
    """Catches a rank for the large layers that a small one refuses."""
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 2))
    report = se.prune(model, se.Principal(rank=np.int64(10)), 0.5)
    assert [row.rank for row in report.layers] == [10, 2]


def test_report_in_all_its_forms(tmp_path):
    """Catches a report that cannot be saved, that lost how it was asked for, whose totals are
    wrong, that overwrites, or that prints a name as markup."""
    model = nn.ModuleDict({"[bold]a": nn.Linear(8, 6), "[/b]": nn.Linear(6, 4)})
    model["free"] = nn.Embedding(3, 3)
    rows = []
    recipe = se.Recipe(se.Principal(rank=3), budget=se.Uniform(0.5, group="row"))
    report = se.prune(model, recipe, seed=np.int64(7), measure=True, progress=rows.append)
    assert rows == report.layers
    assert (report.size, report.nnz, report.sparsity) == (72, 36, 0.5)
    plain = report.to_dict()
    assert plain["seed"] == 7
    assert plain["recipes"] == [recipe.to_dict()]
    assert plain["layers"][0]["spectral"] > 0
    report.save(tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text()) == json.loads(json.dumps(plain))
    with pytest.raises(FileExistsError, match=r"x\.json"):
        report.save(str(tmp_path / "x.json"))
    report.save(str(tmp_path / "x.json"), force=True)
    said = str(report)
    for expected in ("[bold]a.weight", "[/b].weight", "6x8", "2 weights", "left alone", "values"):
        assert expected in said
    assert not re.search(r" +$", said.splitlines()[-1])


def test_report_makes_infinities_json():
    """Catches JSON that other readers refuse: an error against a zero weight is infinite."""
    report = se.prune(nn.Linear(4, 4), sparsity=0.5, measure=True)
    report.layers[0] = type(report.layers[0])(
        **{**vars(report.layers[0]), "spectral": float("inf")}
    )
    assert report.to_dict()["layers"][0]["spectral"] is None
    json.dumps(report.to_dict(), allow_nan=False)


class Depthwise(nn.Sequential):
    """A network that a depthwise layer of nine weights a channel would cut off if it were zero."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 8, 1),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "nnz"),
    [
        ({}, 7),
        ({"recipe": se.Recipe(refit=se.Scale())}, 7),
        ({"calibration": [torch.ones(1, 3, 9, 9)]}, 7),
        ({"recipe": se.Recipe(se.Randomized(), refit=se.Scale())}, None),
        ({"recipe": se.Recipe(budget=BY_ROW)}, 16),
        ({"recipe": "wanda", "calibration": [torch.ones(1, 3, 9, 9)]}, 16),
        (
            {
                "recipe": se.Recipe(budget=BY_ROW, refit=se.ALPS()),
                "calibration": [torch.ones(1, 3, 9, 9)],
            },
            16,
        ),
    ],
)
def test_groups_too_small_for_the_sparsity_leave_no_layer_empty(options, nnz):
    """Catches budgets of single groups or rows that all round to nothing: 5 % of 9 entries."""
    model = Depthwise()
    report = se.prune(model, sparsity=0.95, **options)
    found = next(layer.nnz for layer in report.layers if layer.name == "1.weight")
    assert 0 < found == (nnz or found)
    assert (model[1].weight != 0).sum() == found


def test_a_layer_smaller_than_its_share_keeps_one_entry(tmp_path):
    """Catches a tiny layer pruned whole, in a model and in a file, by entries and by blocks."""
    model = nn.Sequential(nn.Linear(3, 1), nn.Linear(64, 64))
    save_file(model.state_dict(), tmp_path / "in.safetensors")
    report = se.prune(model, sparsity=0.9)
    assert [layer.nnz for layer in report.layers] == [1, 410]
    report = se.prune_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors", sparsity=0.9)
    assert [layer.nnz for layer in report.layers] == [1, 410]
    blocks = nn.Linear(32, 16)
    assert se.prune(blocks, se.Recipe(budget=se.Pattern("16x16"))).nnz == 256


@pytest.mark.parametrize("interrupted", [False, True])
def test_an_error_on_the_way_changes_nothing(interrupted):
    """Catches layers that stay pruned when a later one cannot be, or when the caller's own progress
    fails: half a model pruned, without a report."""
    model = two(dtype=torch.float64)
    if not interrupted:
        with torch.no_grad():
            model[1].weight.mul_(1e-60)  # scored in float32, where it is all zeros
    before = state(model)

    def progress(row):
        if interrupted and row.name == "1.weight":
            raise RuntimeError("enough")

    with pytest.raises((ValueError, RuntimeError), match=r"enough|1\.weight"):
        se.prune(model, "magnitude", 0.5, progress=progress if interrupted else False)
    assert same(before, state(model))
    assert se.masks(model) == {}


def test_numbers_of_numpy_are_saved(tmp_path):
    """Catches a report that cannot be written once the model has been changed."""
    budget = se.Global(np.float32(0.5), floor=np.float32(0.1))
    report = se.prune(two(), se.Recipe(budget=budget))
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["recipes"][0]["budget"]["floor"] == pytest.approx(0.1)
