"""se.spectrum and se.spectra: every weight seen, once, with the right values."""

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, prune

import spectral_engine as se
from spectral_engine._util import threads as parallel
from spectral_engine._util.text import WIDTH
from spectral_engine.layers import views as layer_views
from spectral_engine.layers.find import find_layers
from spectral_engine.layers.selector import Selector
from spectral_engine.spectral.weights import weights_of


def exact(weight: torch.Tensor) -> np.ndarray:
    return np.linalg.svd(weight.detach().double().flatten(1).numpy(), compute_uv=False)


class Net(nn.Module):
    """One weight of every kind, two of them shared, and things that have no spectrum."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(90, 16)
        self.conv = nn.Conv2d(3, 12, 3)
        self.attention = nn.MultiheadAttention(16, 2)
        self.rnn = nn.LSTM(16, 8)
        self.plain = nn.Parameter(torch.randn(5, 4, 3))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 90, bias=False)
        self.head.weight = self.embed.weight
        self.codes = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
        self.empty = nn.Parameter(torch.zeros(0, 4))


def test_every_weight_is_seen_once() -> None:
    """Catches embeddings, in_proj, recurrent or plain parameters skipped, a tied weight counted
    twice, a convolution seen as a batch, and anything left out without a word.
    """
    torch.manual_seed(0)
    net = Net()
    table = se.spectra(net, 4, progress=False)
    gates = ("input", "forget", "cell", "output")
    rows = {
        **{f"attention.in_proj_weight[{p}]": w
           for p, w in zip("qkv", net.attention.in_proj_weight.chunk(3), strict=True)},
        **{f"rnn.{name}[{gate}]": w for name in ("weight_ih_l0", "weight_hh_l0")
           for gate, w in zip(gates, getattr(net.rnn, name).chunk(4), strict=True)},
        "head.weight": net.head.weight, "conv.weight": net.conv.weight,
        "attention.out_proj.weight": net.attention.out_proj.weight, "plain": net.plain,
    }  # fmt: skip
    assert {layer.name for layer in table} == set(rows)
    assert table["head.weight"] is table["embed.weight"]
    assert {(row.name, row.reason) for row in table.skipped} == {
        ("codes", "int8 has no spectrum"),
        ("empty", "empty"),
    }
    for layer in table:
        sigma = exact(rows[layer.name])
        np.testing.assert_allclose(layer.singular_values, sigma[:4], rtol=1e-4)
        assert layer.statistics.frobenius == pytest.approx(np.linalg.norm(sigma), rel=1e-5)
        assert len(layer.known) == len(sigma)


class Fused(nn.Module):
    """One parameter that a registered function sees as two transposed matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Parameter(torch.randn(2, 7, 5))


#: A module of each kind that has views of its own.
KINDS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(6, 5, proj_size=3),
    "gru": lambda: nn.GRU(6, 5, bidirectional=True),
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "grouped": lambda: nn.Conv2d(6, 9, 3, groups=3),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, groups=6),
    "transposed": lambda: nn.ConvTranspose1d(6, 4, 3, groups=2),
    "embedding": lambda: nn.Embedding(9, 4),
    "bilinear": lambda: nn.Bilinear(3, 4, 5),
    "registered": Fused,
    "plain": lambda: nn.ParameterList([torch.randn(4, 5)]),
}


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_views, "_REGISTRY", dict(layer_views._REGISTRY))
    se.register_layer(
        Fused, lambda _: [se.View("pair", lambda w, i=i: w[i].mT, f"p{i}") for i in range(2)]
    )


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_a_report_of_prune(kind: str) -> None:
    """Catches a row of another name, shape or size than the report's, so that the two do not line
    up, and a spectrum that is not that of the matrix, or of the blocks, that was pruned.
    """
    torch.manual_seed(9)
    net = nn.ModuleDict({"layer": KINDS[kind](), "other": nn.Linear(3, 2)})
    table = se.spectra(net, 4, progress=False)
    layers, _ = find_layers(net, Selector(["*"], []))
    sigma = {
        layer.name: np.sort(np.linalg.svd(layer.matrices().double(), compute_uv=False).ravel())
        for layer in layers
    }
    report = se.prune(net, targets="*", sparsity=0.5, masks=False)
    if kind == "plain":
        assert {layer.name for layer in table} == {"layer.0", "other.weight"}
        return
    rows = [(layer.name, layer.shape, layer.dtype) for layer in report.layers]
    assert [(layer.name, layer.shape, layer.dtype) for layer in table] == rows
    for layer in table:
        np.testing.assert_allclose(layer.known[::-1], sigma[layer.name], rtol=1e-4, atol=1e-4)
        assert layer.whole
        assert len(layer.singular_values) == min(4, layer.count)


def test_splits_are_those_of_prune() -> None:
    """Catches parts of a fused weight that only one of the two knows, a pattern for nothing, and
    parts of a file that nothing describes.
    """
    net = nn.ModuleDict({"qkv": nn.Linear(6, 12), "out": nn.Linear(6, 6)})
    split = {"qkv": ("q", "k", "v")}
    table = se.spectra(net, split=split, progress=False)
    assert [layer.name for layer in table] == [
        "qkv.weight[q]", "qkv.weight[k]", "qkv.weight[v]", "out.weight",
    ]  # fmt: skip
    np.testing.assert_allclose(
        table["qkv.weight[k]"].known, exact(net["qkv"].weight[4:8]), rtol=1e-4
    )
    with pytest.raises(ValueError, match=r"split 'kqv'.*; found none"):
        se.spectra(net, split={"kqv": ("q", "k")}, progress=False)
    with pytest.raises(TypeError, match="split: expected a model"):
        se.spectra("w.safetensors", split=split, progress=False)


@pytest.mark.parametrize("max_bytes", [1, 1 << 30])
def test_a_grouped_convolution_is_its_block_diagonal_matrix(max_bytes: int) -> None:
    """Catches a row a group, groups stacked into another matrix, and groups lost between runs."""
    torch.manual_seed(10)
    net = nn.Conv2d(40, 120, 3, groups=20)
    blocks = net.weight.detach().double().unflatten(0, (20, 6)).flatten(2)
    sigma = exact(torch.block_diag(*blocks))
    [layer] = se.spectra(net, 5, progress=False, max_bytes=max_bytes)
    np.testing.assert_allclose(layer.known, sigma, rtol=1e-4)
    np.testing.assert_allclose(layer.singular_values, sigma[:5], rtol=1e-4)
    found = layer.statistics
    assert found.frobenius == pytest.approx(np.linalg.norm(sigma), rel=1e-5)
    p = sigma / sigma.sum()
    assert found.effective_rank == pytest.approx(np.exp(-p @ np.log(p)), rel=1e-5)
    assert found.rank_90 == 1 + np.searchsorted(np.cumsum(sigma**2), 0.9 * np.sum(sigma**2))
    # The entries are uniform, of this deviation, and the edge is that of a 6 x 18 matrix.
    assert found.noise == pytest.approx((1 / 18 / 3) ** 0.5, rel=0.1)
    assert found.edge == pytest.approx(found.noise * (6**0.5 + 18**0.5))


def test_leading_values_of_many_blocks() -> None:
    """Catches the leading values of the first block, or of each, for those of all blocks, and a
    density that holds the values of one.
    """
    torch.manual_seed(11)
    net = nn.Conv1d(3 * 90, 3 * 80, 1, groups=3)
    with torch.no_grad():
        net.weight[80:160] *= 3
    known = se.spectra(net, 6, progress=False)["weight"]
    guess = se.spectra(net, 6, full=False, progress=False)["weight"]
    assert (len(guess.known), guess.count, guess.whole, known.whole) == (6, 240, False, True)
    np.testing.assert_allclose(guess.singular_values, known.singular_values, rtol=1e-3)
    assert guess.statistics.frobenius == pytest.approx(known.statistics.frobenius, rel=1e-5)
    assert guess.statistics.effective_rank == pytest.approx(
        known.statistics.effective_rank, rel=0.1
    )


def test_masked_and_parametrized_weights_are_the_effective_ones() -> None:
    """Catches the spectrum of a pruned layer's dense original, or of the parts that a
    parametrization is made of, and one that is made anew for each name of its module.
    """
    torch.manual_seed(1)
    net = nn.ModuleDict({"a": nn.Linear(20, 15), "b": nn.Linear(20, 15)})
    prune.l1_unstructured(net["a"], "weight", 0.8)
    parametrizations.orthogonal(net["b"])
    net["c"] = net["b"]
    table = se.spectra(net, 5, progress=False)
    assert [layer.name for layer in table] == ["a.weight", "b.weight"]
    assert table["c.weight"] is table["b.weight"]
    np.testing.assert_allclose(
        table["a.weight"].singular_values, exact(net["a"].weight)[:5], rtol=1e-4
    )
    np.testing.assert_allclose(table["b.weight"].singular_values, np.ones(5), rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("full", ["auto", True, False])
def test_values_and_dtypes(full: bool | str, dtype: torch.dtype) -> None:
    """Catches a route (Gram in float32, Gram in float64, Krylov) that misses the tolerance, and
    float64 that is quietly worked on in float32.
    """
    torch.manual_seed(2)
    weight = nn.Parameter((torch.randn(300, 250) @ torch.diag(torch.linspace(1, 3, 250))).to(dtype))
    net = nn.ParameterList([weight])
    layer = se.spectra(net, 8, full=full, progress=False)["0"]
    np.testing.assert_allclose(layer.singular_values, exact(weight)[:8], rtol=1e-3)
    assert layer.whole == (full is not False)
    assert layer.dtype == str(dtype).removeprefix("torch.")
    if full is True:
        rtol = 1e-10 if dtype == torch.float64 else 1e-4
        np.testing.assert_allclose(layer.known, exact(weight), rtol=rtol)
        assert "condition" not in layer.statistics.estimated


def test_gram_in_float32_only_where_it_is_enough() -> None:
    """Catches wanted values that drown in a float32 Gram matrix: sigma_8 = 1e-3 sigma_1."""
    torch.manual_seed(3)
    U, V = (torch.linalg.qr(torch.randn(200, 200))[0] for _ in range(2))
    weight = (U * 10.0 ** torch.linspace(0, -6, 200)) @ V
    layer = se.spectra(nn.ParameterList([weight]), 64, progress=False)["0"]
    np.testing.assert_allclose(layer.singular_values, exact(weight)[:64], rtol=1e-3)


def test_estimates_of_a_large_matrix() -> None:
    """Catches a density of the wrong scale: with the leading values alone, ranks, edge and norms
    are near those of the whole spectrum.
    """
    torch.manual_seed(4)
    weight = torch.randn(600, 400) + 3 * torch.randn(600, 5) @ torch.randn(5, 400)
    net = nn.ParameterList([weight])
    known = se.spectra(net, 10, progress=False)["0"].statistics
    guess = se.spectra(net, 10, full=False, progress=False)["0"].statistics
    assert guess.spectral == pytest.approx(known.spectral, rel=1e-3)
    assert guess.stable_rank == pytest.approx(known.stable_rank, rel=2e-3)
    assert guess.effective_rank == pytest.approx(known.effective_rank, rel=0.05)
    assert guess.edge == pytest.approx(known.edge, rel=0.05)
    assert guess.rank_90 == pytest.approx(known.rank_90, rel=0.05)
    assert known.above_edge == guess.above_edge == 5
    assert guess.condition is None
    assert "effective_rank" in guess.estimated
    assert "effective_rank" not in known.estimated


@given(workers=st.integers(1, 4), max_bytes=st.sampled_from([1, 30_000, 1 << 30]))
@settings(max_examples=8)
def test_the_same_rows_in_the_same_order_whatever_the_batches(workers: int, max_bytes: int) -> None:
    """Catches rows mixed up between threads, an order of completion that shows, threads of the
    caller's that are not given back.
    """
    torch.manual_seed(5)
    net = nn.ParameterList([torch.randn(20 + i, 30) for i in range(6)])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(workers)
        table = se.spectra(net, 3, max_bytes=max_bytes, progress=False)
        assert torch.get_num_threads() == workers
    finally:
        torch.set_num_threads(before)
    assert [layer.name for layer in table] == [str(i) for i in range(6)]
    for layer, weight in zip(table, net, strict=True):
        np.testing.assert_allclose(layer.singular_values, exact(weight)[:3], rtol=1e-4)


def test_max_bytes_bounds_what_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches tensors of a checkpoint all read at once: with little memory, one at a time."""
    together, most = [], []

    def measure(batch, options):
        together.append(batch)
        most.append(len(together))
        rows = real(batch, options)
        together.remove(batch)
        return rows

    module = sys.modules["spectral_engine.spectral.api"]  # the package's attribute is the function
    real = module.measure
    monkeypatch.setattr(module, "measure", measure)
    net = nn.ParameterList([torch.randn(60, 50) for _ in range(5)])
    se.spectra(net, 3, max_bytes=1, progress=False)
    assert max(most) == 1


def test_settings_of_the_process_survive_threads() -> None:
    """Catches threads that each save and restore a global precision setting, in turns."""
    backend = torch.backends.cuda.matmul
    before = backend.fp32_precision
    try:
        backend.fp32_precision = "tf32"
        se.spectra(nn.ParameterList([torch.randn(30, 30) for _ in range(12)]), progress=False)
        assert backend.fp32_precision == "tf32"
    finally:
        backend.fp32_precision = before


def test_for_each_stops_at_the_first_error() -> None:
    """Catches an error swallowed by a thread."""

    def fail(item: int) -> None:
        if item == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        parallel.for_each(fail, range(6), lambda item: 1, 100)


def test_checkpoint_and_model_agree(tmp_path: Path) -> None:
    """Catches tensors of a file read from the wrong place by several threads, other names."""
    torch.manual_seed(6)
    tensors = {f"layer{i}.weight": torch.randn(40, 30 + i) for i in range(8)}
    tensors["bias"] = torch.randn(7)
    save_file(tensors, tmp_path / "w.safetensors")
    table = se.spectra(tmp_path / "w.safetensors", 5, progress=False)
    assert sorted(layer.name for layer in table) == sorted(f"layer{i}.weight" for i in range(8))
    for layer in table:
        np.testing.assert_allclose(layer.singular_values, exact(tensors[layer.name])[:5], rtol=1e-4)


def test_tied_tensors_of_a_file_come_once(tmp_path: Path) -> None:
    """Catches a tied weight of a .pt file counted under both names."""
    shared = torch.randn(6, 5)
    torch.save({"a": shared, "b": shared}, tmp_path / "w.pt")
    with weights_of(tmp_path / "w.pt", Selector(None, [])) as (weights, _):
        assert [(weight.name, weight.shared_with) for weight in weights] == [("a", ("b",))]


def test_table_in_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches JSON with NaN or NumPy values, a file replaced unasked, a row lost in print."""
    net = nn.ModuleDict({"zero": nn.Linear(12, 12), "one": nn.Linear(30, 20)})
    with torch.no_grad():
        net["zero"].weight.zero_()
    table = se.spectra(net, 6, progress=False)
    table.save(tmp_path / "t.json")
    read = json.loads((tmp_path / "t.json").read_text(), parse_constant=pytest.fail)
    assert read == json.loads(json.dumps(table.to_dict()))
    assert [len(layer["singular_values"]) for layer in read["layers"]] == [6, 6]
    assert read["layers"][0]["condition"] is None
    assert set(read["layers"][1]["power_law"]) == {
        "alpha", "alpha_error", "x_min", "distance", "tail",
    }  # fmt: skip
    with pytest.raises(FileExistsError):
        table.save(tmp_path / "t.json")
    text = str(table)
    assert "zero.weight" in text
    assert max(map(len, text.splitlines())) <= WIDTH
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match="to_pandas needs pandas: pip install pandas"):
        table.to_pandas()


def test_to_pandas_hands_over_flat_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches nested columns, and a row without a tail that has fewer columns than the others."""
    seen = []

    class DataFrame:
        def __init__(self, rows: list[dict[str, object]]) -> None:
            seen.extend(rows)

        def set_index(self, name: str) -> str:
            return name

    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=DataFrame))
    net = nn.ModuleDict({"small": nn.Linear(3, 3), "large": nn.Linear(30, 20)})
    assert se.spectra(net, progress=False).to_pandas() == "name"
    assert seen[0].keys() == seen[1].keys()
    assert {"alpha", "tail", "power_law_distance", "rank_90", "edge"} <= seen[0].keys()
    assert not any(isinstance(value, dict) for row in seen for value in row.values())


def test_plot(tmp_path: Path) -> None:
    """Catches a plot that fails on a zero weight or on one value, or that is empty."""
    net = nn.ParameterList([torch.zeros(5, 5), torch.randn(1, 7), torch.randn(30, 20)])
    path = se.spectra(net, progress=False).plot(tmp_path / "s.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("shape", [(40, 30), (3, 40, 30), (2, 2, 20, 9)])
def test_spectrum(shape: tuple[int, ...], kind: str) -> None:
    """Catches another library out than in, a batch folded into rows, a rank above min(m, n)."""
    array = np.random.default_rng(0).standard_normal(shape)
    array.flags.writeable = False
    weight = array if kind == "numpy" else torch.from_numpy(array.copy()).requires_grad_()
    found = se.spectrum(weight, 64, tolerance=1e-6)
    rank = min(shape[-2:])
    assert all(type(x) is (np.ndarray if kind == "numpy" else torch.Tensor)
               for x in (found.U, found.S, found.Vh, found.error))  # fmt: skip
    if kind == "torch":
        assert not found.S.requires_grad
    U, S, Vh, error = (np.asarray(x) for x in (found.U, found.S, found.Vh, found.error))
    assert S.shape == error.shape == (*shape[:-2], rank)
    np.testing.assert_allclose(S, np.linalg.svd(array, compute_uv=False), rtol=1e-6)
    np.testing.assert_allclose((U * S[..., None, :]) @ Vh, array, atol=1e-6)


def test_spectrum_of_half_precision_and_bad_input() -> None:
    """Catches half precision refused or worked on in half, and input that is taken silently."""
    array = np.random.default_rng(1).standard_normal((30, 20)).astype(np.float16)
    assert se.spectrum(array, 3).S.dtype == np.float32
    assert se.spectrum(torch.from_numpy(array).bfloat16(), 3).S.dtype == torch.float32
    with pytest.raises(ValueError, match=r"NaN or infinity in matrix 1 of the batch"):
        se.spectrum(np.stack([np.ones((4, 4)), np.full((4, 4), np.nan)]))
    with pytest.raises(TypeError, match="dtype"):
        se.spectrum(np.ones((4, 4), dtype=int))
    with pytest.raises(TypeError, match="list"):
        se.spectrum([[1.0]])
    with pytest.raises(ValueError, match=r"shape .*; got \(3,\)"):
        se.spectrum(np.ones(3))
    with pytest.raises(ValueError, match="rank"):
        se.spectrum(np.ones((3, 3)), 0)
    with pytest.raises(ValueError, match="empty dimension"):
        se.spectrum(np.ones((3, 0)))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"rank": 0}, ValueError, "rank: expected at least 1; got 0"),
        ({"rank": 2.5}, TypeError, "rank: expected an integer; got float"),
        ({"tolerance": 0.0}, ValueError, "tolerance: expected a number above 0; got 0.0"),
        ({"tolerance": "x"}, TypeError, "tolerance"),
        ({"max_bytes": 0}, ValueError, "max_bytes: expected at least 1; got 0"),
        ({"full": "yes"}, ValueError, "full: expected True, False or 'auto'; got 'yes'"),
        ({"targets": "nothing.*"}, ValueError, r"targets 'nothing\.\*'"),
        ({"ignore": "*"}, ValueError, "expected a floating-point tensor"),
    ],
)
def test_bad_options(options: dict[str, object], error: type[Exception], match: str) -> None:
    """Catches an option that is taken silently or fails deep inside."""
    with pytest.raises(error, match=match):
        se.spectra(nn.Linear(4, 4), progress=False, **options)


def test_bad_models(tmp_path: Path) -> None:
    """Catches NaN in one weight that is not named, and what is no model."""
    net = nn.ModuleDict({"good": nn.Linear(4, 4), "bad": nn.Linear(4, 4)})
    with torch.no_grad():
        net["bad"].weight[1, 2] = torch.inf
    with pytest.raises(ValueError, match=r"bad\.weight holds NaN or infinity"):
        se.spectra(net, progress=False)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module or the path"):
        se.spectra(3)
    with pytest.raises(OSError, match=r"none\.safetensors"):
        se.spectra(tmp_path / "none.safetensors")
    meta = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(3, 3, device="meta")})
    assert [row.name for row in se.spectra(meta, progress=False).skipped] == ["b.weight"]
