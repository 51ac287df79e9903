"""Tensors of a checkpoint are judged as in their model, or by name and shape, and it is said."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import spectral_engine as se


class Attention(nn.Module):
    """A fused projection seen in parts, what is no matrix, and a router of its own kind."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.zeros(24, 8))
        self.router = nn.Parameter(torch.zeros(4, 8))
        self.out = nn.Linear(8, 8)


class StandInForCausalLM(nn.Module):
    """A model that the stand-in for transformers knows."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab, 8)
        self.attention = Attention()
        self.lookup = nn.Embedding(6, 8)
        self.head = nn.Linear(8, config.vocab)


@pytest.fixture
def known(monkeypatch) -> None:
    """transformers, as far as it is asked, and the views of its attention."""
    module = ModuleType("transformers")
    module.__version__ = "5.0"
    module.StandInForCausalLM = StandInForCausalLM

    def from_pretrained(path: str, **options: bool) -> SimpleNamespace:
        assert options == {"local_files_only": True, "trust_remote_code": False}
        return SimpleNamespace(**json.loads((Path(path) / "config.json").read_text()))

    module.AutoConfig = SimpleNamespace(from_pretrained=from_pretrained)
    monkeypatch.setitem(sys.modules, "transformers", module)
    se.register_layer(
        Attention,
        lambda _: [
            se.View("qkv", lambda weight, i=i: weight[8 * i : 8 * i + 8], part=part)
            for i, part in enumerate("qkv")
        ],
    )


def folder(path: Path, config: dict, state: dict[str, torch.Tensor] | None = None) -> Path:
    """A Hugging Face style folder of the stand-in model, with random weights."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = StandInForCausalLM(SimpleNamespace(vocab=12))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    save_file(model.state_dict() if state is None else state, path / "model.safetensors")
    return path


CONFIG = {"architectures": ["StandInForCausalLM"], "model_type": "stand-in", "vocab": 12}


def test_a_folder_is_pruned_as_its_model(known, tmp_path):
    """Catches a router or a look-up table pruned in a file that the model leaves alone, a fused
    weight under one budget and one stream, and class names that a known model has."""
    source = folder(tmp_path / "in", CONFIG)
    report = se.prune_file(source, tmp_path / "out", "randomized", 0.5, seed=3)
    model = StandInForCausalLM(SimpleNamespace(vocab=12))
    model.load_state_dict(load_file(source / "model.safetensors"))
    expected = se.prune(model, "randomized", 0.5, seed=3)
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(found[name], value), name
    assert {row.name for row in report.layers} == {row.name for row in expected.layers}
    assert {one.name: one.reason for one in report.skipped} == {
        one.name: one.reason for one in expected.skipped
    }
    assert report.notes == ["judged as layers of StandInForCausalLM"]
    only = se.prune_file(source, tmp_path / "linear", "magnitude", 0.5, targets="Linear")
    assert {row.name for row in only.layers} == {"attention.out.weight", "head.weight"}


def test_what_the_model_does_not_know_is_judged_by_name(known, tmp_path):
    """Catches a tensor of another name or shape than the model's that is pruned unseen."""
    state = {
        "head.weight": torch.randn(12, 8), "lookup.weight": torch.randn(5, 8),
        "extra.weight": torch.randn(4, 4),
    }  # fmt: skip
    source = folder(tmp_path / "in", CONFIG, state)
    report = se.prune_file(source, tmp_path / "out", "magnitude", 0.5)
    assert {row.name for row in report.layers} == {*state}
    note = "judged as layers of StandInForCausalLM; by names and shapes: extra.weight, lookup"
    assert report.notes[0].startswith(note)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**CONFIG, "architectures": ["Unknown"]}, "transformers 5.0 does not know Unknown"),
        ({**CONFIG, "auto_map": {"AutoModel": "code.Model"}}, "is not run"),
        ({**CONFIG, "vocab": "many"}, "transformers could not build StandInForCausalLM"),
        ({"vocab": 12}, "config.json names no architecture"),
    ],
)
def test_an_unknown_model_is_said(known, tmp_path, config, said):
    """Catches a folder judged by names without a word, and code of a folder that is run."""
    report = se.prune_file(folder(tmp_path / "in", config), tmp_path / "out", "magnitude", 0.5)
    assert report.notes[0].startswith("judged by names and shapes: ")
    assert said in report.notes[0]
    assert said in " ".join(str(report).split())


@pytest.mark.parametrize(
    "state",
    [
        {"q.weight": torch.ones(64, 64).to(torch.float8_e4m3fn),
         "q.weight_scale_inv": torch.rand(2, 4) + 0.5},
        {"q.weight": torch.ones(64, 64, dtype=torch.int8), "q.weight_scale": torch.rand(64, 1)},
        {"q.qweight": torch.ones(64, 64, dtype=torch.int32), "q.scales": torch.rand(4, 64)},
    ],
)  # fmt: skip
def test_companions_of_quantised_weights_stay(tmp_path, state):
    """Catches the scales of a quantised weight pruned as if they were a weight: the layer is ruined
    though the report says that its weight was left alone."""
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file({**state, "head.weight": torch.randn(8, 8)}, source)
    report = se.prune_file(source, target, "magnitude", 0.9)
    assert [row.name for row in report.layers] == ["head.weight"]
    assert {one.name for one in report.skipped} == {*state}
    found = load_file(target)
    for name, value in state.items():
        assert torch.equal(found[name].view(torch.uint8), value.view(torch.uint8))


def test_names_that_are_no_matrices_stay(tmp_path):
    """Catches Mamba's A_log, a router or biases of experts pruned where no model is known."""
    left = {
        "mixer.A_log": torch.rand(8, 4), "experts.gate_up_proj_bias": torch.rand(4, 8),
        "mlp.router.weight": torch.rand(4, 8),
        "attn.relative_attention_bias.weight": torch.rand(8, 2),
    }  # fmt: skip
    pruned = {"mlp.experts.gate_up_proj": torch.randn(4, 8, 6), "fc.weight": torch.randn(8, 8)}
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file({**left, **pruned}, source)
    report = se.prune_file(source, target, se.Recipe(budget=se.Uniform(0.5, group="row")))
    assert {row.name for row in report.layers} == {*pruned}
    assert {one.name for one in report.skipped} == {*left}
    experts = load_file(target)["mlp.experts.gate_up_proj"]
    assert ((experts != 0).sum(2) == 3).all()  # rows of each expert's matrix


def test_conv1d_of_gpt2_is_seen_inputs_last(tmp_path):
    """Catches 2:4 along the outputs of a layer that is stored (in, out)."""
    source = tmp_path / "in"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "gpt2"}')
    save_file({"h.0.mlp.c_fc.weight": torch.randn(8, 12)}, source / "model.safetensors")
    se.prune_file(source, tmp_path / "out", se.Recipe(budget=se.Pattern("2:4")))
    found = load_file(tmp_path / "out" / "model.safetensors")["h.0.mlp.c_fc.weight"]
    assert ((found.T.reshape(12, 2, 4) != 0).sum(2) == 2).all()
