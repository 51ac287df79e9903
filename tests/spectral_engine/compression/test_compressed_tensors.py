"""The old reader of compressed-tensors opens our files; ours opens its files.

Runs where a version before 0.14 is installed.
"""

import pytest
import torch

import spectral_engine as se
from tests.support.sparse_weights import pruned, save

library = pytest.importorskip("compressed_tensors")
bitmask = pytest.importorskip(
    "compressed_tensors.compressors.sparse_compressors.sparse_bitmask",
    reason="compressed-tensors dropped the bitmask format in 0.14",
    exc_type=ImportError,
)
pytestmark = pytest.mark.filterwarnings("default")


def tensors(dtype):
    return {
        "model.fc.weight": pruned(32, 60, sparsity=0.6, dtype=dtype),
        "model.fc.bias": torch.randn(32),
        "model.wide.weight": pruned(7, 256, sparsity=0.8, dtype=dtype),
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_it_opens_our_files(dtype, tmp_path):
    """Catches names, an order of bits or an order of values that are not that library's."""
    dense = tensors(dtype)
    save(tmp_path / "dense.safetensors", dense)
    report = se.compress_file(tmp_path / "dense.safetensors", tmp_path / "model.safetensors")
    assert {row.form for row in report.weights} == {"bitmask"}
    (tmp_path / "dense.safetensors").unlink()
    compressor = bitmask.BitmaskCompressor()
    found = dict(compressor.decompress(str(tmp_path)))
    assert found.keys() == dense.keys()
    assert all(torch.equal(found[name], one) for name, one in dense.items())


def test_we_open_its_files(tmp_path):
    """Catches a file of that library, which has none of our metadata, read as its parts."""
    dense = tensors(torch.float32)
    compressor = bitmask.BitmaskCompressor()
    save(tmp_path / "theirs.safetensors", compressor.compress(dense))
    se.decompress_file(tmp_path / "theirs.safetensors", tmp_path / "again.safetensors")
    from safetensors.torch import load_file  # noqa: PLC0415

    found = load_file(tmp_path / "again.safetensors")
    assert found.keys() == dense.keys()
    assert all(torch.equal(found[name], one) for name, one in dense.items())
