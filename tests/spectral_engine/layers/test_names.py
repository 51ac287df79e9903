"""Names that do not depend on wrappers; adapters and parametrized weights that are left alone."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as torch_prune

import spectral_engine as se


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def compiled_inside(model: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(torch.compile(model[0], backend="eager"), model[1], model[2])


WRAPPERS = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "a compiled layer": compiled_inside,
    "DataParallel": nn.DataParallel,
    "an average": torch.optim.swa_utils.AveragedModel,
    "two": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_a_wrapped_model_is_pruned_as_the_model_inside(wrap):
    """Catches "module." or "_orig_mod." in names, which gave other draws, masks that do not fit
    the model inside, and moments that the other one does not find."""
    plain, wrapped = mlp(), wrap(mlp())
    data = [torch.randn(32, 8)]
    expected = se.prune(plain, "randomized", 0.5, seed=1)
    report = se.prune(wrapped, "randomized", 0.5, seed=1)
    names = [row.name for row in expected.layers]
    assert [row.name for row in report.layers] == names == ["0.weight", "2.weight"]
    for one, other in zip(plain.parameters(), wrapped.parameters(), strict=True):
        assert torch.equal(one, other)
    assert list(se.masks(wrapped)) == names
    se.apply_masks(mlp(), se.masks(wrapped))
    se.apply_masks(wrap(mlp()), se.masks(plain))
    assert list(se.calibrate(wrap(mlp()), data).moments) == names
    assert [row.name for row in se.compare(mlp(), wrapped).layers] == names
    assert se.SpectrumTracker(wrapped).names == names
    assert [row.name for row in se.prune(wrap(mlp()), ignore="0").layers] == ["2.weight"]


def test_patterns_with_a_wrappers_prefix_still_match():
    """Catches a pattern copied from the wrapper's named_parameters that matches nothing."""
    report = se.prune(nn.DataParallel(mlp()), ignore="module.0.weight")
    assert [row.name for row in report.layers] == ["2.weight"]
    assert report.unmatched == []


def test_a_child_of_ones_own_called_module_keeps_its_name():
    """Catches two weights under one name where a user's class calls a child "module"."""
    model = nn.ModuleDict({"module": nn.Linear(8, 4), "head": nn.Linear(4, 2)})
    assert [row.name for row in se.prune(model).layers] == ["module.weight", "head.weight"]


class LoraLinear(nn.Module):
    """An adapted linear layer as peft builds it."""

    adapter_layer_names = ("lora_A", "lora_B", "scaling_part")

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})
        self.scaling_part = nn.Linear(2, 2)
        nn.init.zeros_(self.lora_B["default"].weight)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


@pytest.mark.parametrize("targets", [None, "Linear", "*q_proj*", "*", "*.weight"])
def test_adapters_are_left_alone(targets):
    """Catches lora_A and lora_B pruned like weights, by default or through a class or glob that is
    meant for the weight; and a fresh lora_B, all zeros, that has the whole call refused."""
    model = nn.ModuleDict({"q_proj": LoraLinear(nn.Linear(8, 8))})
    adapter = [*model["q_proj"].lora_A.parameters(), *model["q_proj"].lora_B.parameters()]
    before = [parameter.detach().clone() for parameter in adapter]
    report = se.prune(model, sparsity=0.5, targets=targets)
    assert [row.name for row in report.layers] == ["q_proj.base_layer.weight"]
    reasons = {one.name: one.reason for one in report.skipped}
    for part in ("lora_A.default", "lora_B.default", "scaling_part"):
        named = f"an adapter's {part.partition('.')[0]}; name it in targets to prune it"
        assert reasons[f"q_proj.{part}.weight"] in (named, "not among targets")
    assert all(map(torch.equal, adapter, before))
    assert set(se.mask_zeros(model)) == {"q_proj.base_layer.weight"}


@pytest.mark.parametrize("targets", ["*lora_A*", "q_proj.lora_A.default.weight", "re:.*lora_A.*"])
def test_adapters_are_pruned_where_they_are_named(targets):
    """Catches an adapter that cannot be pruned at all."""
    model = nn.ModuleDict({"q_proj": LoraLinear(nn.Linear(8, 8))})
    report = se.prune(model, sparsity=0.5, targets=targets)
    assert [row.name for row in report.layers] == ["q_proj.lora_A.default.weight"]


def weight_hook(module: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: the hook is deprecated
        nn.utils.weight_norm(module)


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (parametrizations.weight_norm, "remove_parametrizations"),
        (parametrizations.spectral_norm, "remove_parametrizations"),
        (lambda m: torch_prune.l1_unstructured(m, "weight", amount=0.3), "prune.remove"),
        (weight_hook, "remove_weight_norm"),
    ],
)
def test_weights_made_of_others_are_named_with_the_way_out(change, advice):
    """Catches "no prunable weight is left" for a model whose weights are all parametrized, and a
    report that does not say why one was left alone."""
    model = nn.Sequential(nn.Linear(8, 8))
    change(model[0])
    with pytest.raises(ValueError, match=rf"no prunable weight is left .*0\..*{advice}"):
        se.prune(model, sparsity=0.5)
    model.append(nn.Linear(8, 4))
    report = se.prune(model, sparsity=0.5)
    assert [row.name for row in report.layers] == ["1.weight"]
    assert any(advice in one.reason for one in report.skipped)
    if parametrize.is_parametrized(model[0]):
        parametrize.remove_parametrizations(model[0], "weight")
        assert len(se.prune(model, sparsity=0.5).layers) == 2
