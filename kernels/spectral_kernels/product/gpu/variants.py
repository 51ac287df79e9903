"""The kernels of products as they are launched, to be compiled for a GPU that is not there."""

from collections.abc import Iterator

from spectral_kernels.backends.gpu.compile import Variant
from spectral_kernels.product.gpu import kernels
from spectral_kernels.product.gpu.packing import WARPS, tile

#: Columns of a matrix: so many that a tile is as large as tiles become.
_COLUMNS = 8192


def product_variants() -> Iterator[Variant]:
    """Every dtype, and numbers of right-hand sides up to those that the kernel serves."""
    for dtype in ("fp16", "bf16", "fp32", "fp64"):
        for sides in (1, 2, 4) if dtype == "fp64" else (1, 2, 4, 8, 16):
            constants = {
                "SIDES": sides, "BYTES": tile(_COLUMNS, sides), "DOUBLE": dtype == "fp64",
            }  # fmt: skip
            yield _variant("product", dtype, constants, f"{sides}")
        yield _variant("unpack", dtype, {"BYTES": tile(_COLUMNS)})


def _variant(kernel: str, dtype: str, constants: dict[str, int], label: str = "") -> Variant:
    return Variant(kernel, dtype, dict(constants), label, (), {}, WARPS, True, kernels)
