"""Companions of quantised weights are told from weights, in the formats that people have."""

import doctest

import pytest
import torch

from spectral_engine.checkpoints import companions_of, open_checkpoint, quantised, rewrite
from spectral_engine.checkpoints.quantised import quantised_companions

FP8, BF16, F32 = torch.float8_e4m3fn, torch.bfloat16, torch.float32
I8, U8, I32, F16, I64 = torch.int8, torch.uint8, torch.int32, torch.float16, torch.int64
HEAD = {"head.weight": ((64, 512), BF16)}

QUANTISED = {
    "DeepSeek": {
        "q.weight": ((256, 512), FP8, "weight"),
        "q.weight_scale_inv": ((2, 4), F32, "q.weight"),
    },
    "compressed-tensors": {
        "q.weight_packed": ((256, 64), I32, "weight"),
        "q.weight_scale": ((256, 4), BF16, "q.weight_packed"),
        "q.weight_zero_point": ((32, 4), I32, "q.weight_packed"),
        "q.weight_shape": ((2,), I64, "q.weight_packed"),
    },
    "int8": {
        "q.weight": ((256, 512), I8, "weight"),
        "q.weight_scale": ((256, 1), BF16, "q.weight"),
        "q.input_scale": ((1, 1), BF16, "q.weight"),
    },
    "GPTQ": {
        "q.qweight": ((64, 256), I32, "weight"),
        "q.qzeros": ((4, 32), I32, "q.qweight"),
        "q.scales": ((4, 256), F16, "q.qweight"),
        "q.g_idx": ((512,), I32, "q.qweight"),
    },
    "bitsandbytes": {
        "q.weight": ((65536, 1), U8, "weight"),
        "q.weight.absmax": ((2048,), U8, "q.weight"),
        "q.weight.nested_absmax": ((8, 1), F32, "q.weight"),
        "q.weight.quant_map": ((16, 1), F32, "q.weight"),
        "q.weight.quant_state.bitsandbytes__nf4": ((80,), U8, "q.weight"),
    },
    "MXFP4": {
        "experts.gate_up_blocks": ((4, 64, 2, 16), U8, "weight"),
        "experts.gate_up_scales": ((4, 64, 2), U8, "experts.gate_up_blocks"),
        "experts.gate_up_bias": ((4, 64), BF16, "experts.gate_up_blocks"),
        "experts.down_blocks": ((4, 64, 2, 16), U8, "weight"),
        "experts.down_scales": ((4, 64, 2), U8, "experts.down_blocks"),
        "router.weight": ((4, 64), BF16, None),
    },
    "HQQ": {
        "q.W_q": ((128, 512), U8, "weight"),
        "q.scale": ((1024, 1), F16, "q.W_q"),
        "q.zero": ((1024, 1), F16, "q.W_q"),
    },
    "names of nobody": {
        "q.weight": ((256, 512), "F4", "weight"),
        "q.lore": ((256, 4), F16, "q.weight"),
    },
}


@pytest.mark.parametrize("case", QUANTISED)
def test_companions_are_found(case):
    """Catches scales pruned as if they were weights, which ruins a layer that is left alone."""
    tensors = {name: item[:2] for name, item in QUANTISED[case].items()} | HEAD
    owners = {name: item[2] for name, item in QUANTISED[case].items()}
    found = quantised_companions(tensors)
    expected = {name for name, owner in owners.items() if owner not in ("weight", None)}
    assert set(found) == expected
    for name, reason in found.items():
        assert f"belongs to the quantised weight {owners[name]!r} (" in reason


def test_weights_are_no_companions():
    """Catches a weight left alone for a mask, a counter or a scale of its own in its module."""
    tensors = {
        "fc.weight": ((64, 64), F32),
        "fc.weight_mask": ((64, 64), U8),
        "norm.num_batches_tracked": ((), I64),
        "attn.bias": ((1, 1, 1024, 1024), U8),
        "attn.weight": ((64, 64), F32),
        "swin.relative_position_index": ((49, 49), I32),
        "swin.relative_position_bias_table": ((169, 4), F32),
        "layer.scale": ((64, 1), F32),
        "moe.up_proj": ((4, 64, 64), FP8),
        "moe.down_proj": ((4, 64, 64), BF16),
    }
    assert quantised_companions(tensors) == {}


def test_of_a_checkpoint(tmp_path):
    """Catches the names of a file not handed on, and the example of the docstring."""
    state = {"q.weight": torch.ones(4, 4).to(FP8), "q.weight_scale": torch.ones(4, 1)}
    torch.save(state, tmp_path / "in.pt")
    rewrite(tmp_path / "in.pt", tmp_path / "in.safetensors", lambda name, tensor: None)
    for name in ("in.pt", "in.safetensors"):
        with open_checkpoint(tmp_path / name) as checkpoint:
            assert list(companions_of(checkpoint)) == ["q.weight_scale"]
    assert doctest.testmod(quantised).failed == 0
