"""transformers loads and saves what is compressed. Runs where transformers is installed."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import spectral_engine as se
from spectral_engine.compression.weights import SparseWeight

transformers = pytest.importorskip("transformers", minversion="5")
pytestmark = pytest.mark.filterwarnings("default")

SIZES = {
    "vocab_size": 120, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
IDS = torch.arange(3, 17).reshape(2, 7)


def llama(**settings):
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **settings))


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=120, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=120, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=96,
    )  # fmt: skip
    return transformers.BertModel(config)


def mixtral():
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SIZES, num_local_experts=3, num_experts_per_tok=2)
    return transformers.MixtralForCausalLM(config)


def sparse_layers(model) -> int:
    return sum(isinstance(module, SparseWeight) for module in model.modules())


def close(a, b) -> bool:
    return torch.allclose(a, b, atol=1e-5)


def saved(model, folder: Path, sparsity: float = 0.7, **settings):
    """A pruned model, its folder, dense and compressed, and what it gives."""
    model.eval()
    se.prune(model, "magnitude", sparsity)
    se.finalize(model)
    model.save_pretrained(folder / "dense", **settings)
    se.compress_file(folder / "dense", folder / "small")
    with torch.no_grad():
        return model, model(IDS)[0]


CASES = {
    "llama": (llama, transformers.AutoModelForCausalLM, 0.7, {}, 15),
    "tied": (
        lambda: llama(tie_word_embeddings=True), transformers.AutoModelForCausalLM, 0.7, {}, 14
    ),
    "shards, deltas": (
        llama, transformers.AutoModelForCausalLM, 0.98, {"max_shard_size": "60KB"}, 15
    ),
    "bert": (bert, transformers.AutoModel, 0.7, {}, 13),
    # Weights stored (in, out); the embedding, which is the head too, stays dense.
    "gpt2": (gpt2, transformers.AutoModelForCausalLM, 0.7, {}, 8),
    # transformers merges the experts while it loads them, and they are dense then.
    "mixtral": (mixtral, transformers.AutoModelForCausalLM, 0.7, {}, 9),
    "mixtral, shards": (
        mixtral, transformers.AutoModelForCausalLM, 0.7, {"max_shard_size": "60KB"}, 9
    ),
    "gpt2, deltas": (gpt2, transformers.AutoModelForCausalLM, 0.98, {}, 8),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_loads_saves_and_becomes_dense(name, tmp_path):
    """Catches a weight made up because its parts were not found, a layer that stays dense, a folder
    saved that does not load again, and a dense export that is not the dense model."""
    make, auto, sparsity, settings, count = CASES[name]
    model, expected = saved(make(), tmp_path, sparsity, **settings)
    small, found = auto.from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not any(found.values())
    assert sparse_layers(small) == count
    with torch.no_grad():
        assert close(small(IDS)[0], expected)
        small.save_pretrained(tmp_path / "again")
        again = auto.from_pretrained(tmp_path / "again")
        assert sparse_layers(again) == count
        assert torch.equal(again(IDS)[0], small(IDS)[0])
        for source in ("small", "again"):
            se.decompress_file(tmp_path / source, tmp_path / f"{source} dense")
            dense = auto.from_pretrained(tmp_path / f"{source} dense")
            assert sparse_layers(dense) == 0
            assert not hasattr(dense.config, "quantization_config")
            assert torch.equal(dense(IDS)[0], expected)
        half = auto.from_pretrained(tmp_path / "small", dtype=torch.bfloat16)
        assert {one.dtype for one in half.state_dict().values() if one.is_floating_point()} == {
            torch.bfloat16
        }
        assert half(IDS)[0].dtype == torch.bfloat16
    if small.can_generate():
        options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
        assert torch.equal(small.generate(IDS, **options), model.generate(IDS, **options))


def test_a_model_compressed_in_memory_is_saved(tmp_path):
    """Catches a folder without what says that it is compressed, and one of a model that is not."""
    model, expected = saved(llama(), tmp_path)
    se.compress(model)
    model.save_pretrained(tmp_path / "small again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small again")
    assert sparse_layers(again) == sparse_layers(model) == 15
    with torch.no_grad():
        assert close(again(IDS)[0], expected)
    for one in (model, again):
        one.dequantize() if one is again else se.decompress(one)
        one.save_pretrained(tmp_path / "dense again")
        assert "quantization_config" not in json.loads(
            (tmp_path / "dense again" / "config.json").read_text()
        )


def test_a_base_model_from_a_head(tmp_path):
    """Catches names that have the prefix of the base model where the model has none."""
    saved(llama(), tmp_path)
    base = transformers.AutoModel.from_pretrained(tmp_path / "small")
    assert sparse_layers(base) == 14


def test_adapters_can_be_trained_on_top(tmp_path):
    """Catches gradients that do not pass through compressed layers, or reach their weights."""
    saved(llama(), tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    model.model.layers[0].mlp.up_proj.bias = torch.nn.Parameter(torch.zeros(128))
    model(IDS, labels=IDS).loss.backward()
    assert model.model.layers[0].mlp.up_proj.bias.grad.abs().sum() > 0


def test_a_later_version_is_refused(tmp_path):
    """Catches a folder of a later format loaded as one of this."""
    saved(llama(), tmp_path)
    path = tmp_path / "small" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["version"] = 2
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="expected version 1; got 2"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")


def test_other_quantisation_is_refused(tmp_path):
    """Catches a config that loses what another quantiser needs."""
    saved(llama(), tmp_path)
    path = tmp_path / "dense" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ValueError, match="gptq"):
        se.compress_file(tmp_path / "dense", tmp_path / "other")
    assert not (tmp_path / "other").exists()


LOAD = """
import sys
{imports}
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(type(model.lm_head).__name__)
"""


@pytest.mark.parametrize(
    ("imports", "kind"),
    [
        ("import spectral_engine; assert 'transformers' not in sys.modules; import transformers",
         "SparseLinear"),
        ("import transformers, spectral_engine", "SparseLinear"),
        ("import transformers; transformers.LlamaForCausalLM; import spectral_engine",
         "SparseLinear"),
        ("import transformers", "Linear"),
    ],
)  # fmt: skip
def test_whichever_is_imported_first(imports, kind, tmp_path):
    """Catches an import that comes too late, transformers imported with this package, and a folder
    that is loaded without it and does not say what is missing."""
    logging.getLogger("transformers").setLevel(logging.WARNING)
    saved(llama(), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LOAD.format(imports=imports), tmp_path / "small"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == kind
    said = "spectral_engine (import it before from_pretrained)" in done.stderr
    assert said == (kind == "Linear")


@pytest.mark.parametrize("sparsity", [0.6, 0.02])
def test_factors_survive(sparsity, tmp_path):
    """Catches factors that from_pretrained reports as unexpected, also beside weights that stay
    dense since no form is smaller."""
    model = llama().eval()
    recipe = se.Recipe(low_rank=se.LowRank(3 if sparsity > 0.5 else 1))
    se.prune(model, recipe, sparsity, ignore="lm_head")
    se.finalize(model)
    with torch.no_grad():
        expected = model(IDS)[0]
    se.compress(model)
    model.save_pretrained(tmp_path / "small")
    small, found = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "small", output_loading_info=True
    )
    assert not any(found.values())
    kinds = [type(module) for module in small.modules()]
    held = kinds.count(se.LowRankLinear), kinds.count(se.SparseLowRankLinear)
    assert sum(held) == 14
    assert held[0] == 0 if sparsity > 0.5 else held[0] > 0
    with torch.no_grad():
        assert close(small(IDS)[0], expected)
    se.decompress(small)
    assert se.merge_low_rank(small) == 14
    with torch.no_grad():
        assert close(small(IDS)[0], expected)
