"""Machine code for processors and GPUs that are not there."""

import platform
import sys

import pytest

from tests.support.processes import run_python

TRITON = """
import sys
from spectral_kernels.backends.gpu import compile as compiler
from spectral_kernels.product.gpu.variants import product_variants
target = compiler.TARGETS[sys.argv[1]]
made = [(one, compiler.compile_variant(one, target)) for one in product_variants()]
if target.backend == "cuda":
    for variant, found in compiler.figures(made, target):
        print(variant.name, found.loop_per_entry, found.local_bytes, found.load_bits)
else:
    for variant, kernel in made:
        print(variant.name, len(kernel.asm["hsaco"]), 0, 0)
"""
#: Instructions an entry of the loop, on sm_90, that a change must not pass: 10 to 20 % above what
#: docs/performance.md says. With as many as 60, which a running count of every column takes, one
#: right-hand side is slower than dense.
MOST = {
    "product-bf16-1": 23, "product-fp16-1": 23, "product-fp32-1": 24, "product-bf16-2": 37,
    "product-bf16-4": 55, "product-bf16-8": 85, "product-bf16-16": 140, "product-fp32-8": 65,
    "product-fp32-16": 110, "unpack-bf16": 22, "unpack-fp32": 22,
}  # fmt: skip

#: Compiled, not run: Numba takes the processor's name from the environment.
AVX512 = """
import sys
import numba
from numba import types
from spectral_kernels.product.cpu import kernels
elements = {"float32": types.float32, "float64": types.float64, "bfloat16": types.uint16}
element = elements[sys.argv[1]]
sums = types.float64[::1] if element == types.float64 else types.float32[::1]
values, bits, table = (kind[::1] for kind in (element, types.uint8, types.uint16))
signature = (
    values, types.int64, bits, types.int64[::1], types.int64, table, sums, types.int64, sums,
    types.int64, types.int64, types.int64,
)
fresh = numba.njit(error_model="numpy")(kernels.some_rows.py_func)  # not from the cache
fresh.compile(signature)
text = fresh.inspect_asm(signature)
for name in ("vexpandps", "vexpandpd", "vpexpandw", "vfmadd"):
    lines = [line for line in text.splitlines() if line.strip().startswith(name)]
    print(name, len(lines), sum("(" in line for line in lines))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_triton_kernels_compile(target: str) -> None:
    """A construct that one compiler, NVIDIA's or AMD's, does not take; registers that spill; x read
    one entry at a time; a layout by which threads count columns together, which takes thrice the
    instructions.
    """
    lines = run_python("-c", TRITON, target).splitlines()
    found = {name: tuple(map(float, rest)) for name, *rest in map(str.split, lines)}
    assert len(found) == 22
    if target == "gfx942":
        assert all(size > 0 for size, _, _ in found.values())
        return
    for name, (loop, spilled, load) in found.items():
        assert spilled <= 32, name
        assert load == 128 or "unpack" in name, name
        if target == "sm_90":
            assert loop <= MOST.get(name, loop), name


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles for its own kind only")
@pytest.mark.parametrize(
    ("dtype", "instruction"),
    [("float32", "vexpandps"), ("float64", "vexpandpd"), ("bfloat16", "vpexpandw")],
)
@pytest.mark.parametrize("processor", ["icelake-server", "znver4"])
def test_avx512_expands_in_one_instruction(processor: str, dtype: str, instruction: str) -> None:
    """An expansion that is taken apart into sixteen conditional loads, or that reads memory itself:
    microcode on Zen 4, which takes twice as long.
    """
    environment = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": ""}
    lines = run_python("-c", AVX512, dtype, **environment).splitlines()
    found = {name: (int(count), int(memory)) for name, count, memory in map(str.split, lines)}
    # Four or eight groups of a word, for one and for two right-hand sides.
    assert found[instruction][0] >= 8
    assert found[instruction][1] == 0
    assert found["vfmadd"][0] >= 12
