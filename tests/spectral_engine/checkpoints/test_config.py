"""What a folder says of its model is read, never trusted."""

import json

import pytest
import torch
from safetensors.torch import save_file

from spectral_engine.checkpoints import files_of_tensors, model_config, open_checkpoint


def test_architecture(tmp_path):
    """Catches an architecture, a quantisation or code of the folder's own overlooked."""
    text = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "quantization_config": {"quant_method": "fp8"},
        "auto_map": {"AutoModel": "modeling.Model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(text))
    config = model_config(tmp_path)
    assert config.architectures == ("LlamaForCausalLM",)
    assert (config.model_type, config.quantisation) == ("llama", "fp8")
    assert config.own_code
    assert config.unknown is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "has no config.json"),
        ("{}", "config.json names no architecture"),
        ('{"architectures": [3]}', "config.json names no architecture"),
        ("{", "config.json in JSON"),
        ("[]", "config.json to be a JSON object"),
        ("version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    ],
)
def test_no_architecture(text, reason, tmp_path):
    """Catches a folder refused, or judged without a word, for a config.json that says nothing."""
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    config = model_config(tmp_path)
    assert config.architectures == ()
    assert reason in config.unknown
    assert "which names no architecture" in model_config(tmp_path / "x.safetensors").unknown


def test_files_of_tensors(tmp_path):
    """Catches a tensor said to be in a file where the index does not find it."""
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with open_checkpoint(tmp_path) as folder:
        assert files_of_tensors(folder) == {"a": "one.safetensors", "b": "two.safetensors"}
