"""Machine code for processors and GPUs that are not there."""

import platform
import sys

import pytest

from tests.support.processes import run_python

TRITON = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from spectral_kernels.product.gpu import kernels
targets = {
    "sm_80": GPUTarget("cuda", 80, 32), "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32), "gfx942": GPUTarget("hip", "gfx942", 64),
}
target = targets[sys.argv[1]]
pointers = {"bits": "*u8", "offsets": "*i64"}
for dtype in ("fp16", "bf16", "fp32", "fp64"):
    for kernel, sides in ((kernels.product, 1), (kernels.product, 16), (kernels.unpack, 0)):
        constants = {"COLUMNS": 2048 // max(sides, 1)}
        if sides:
            constants |= {"SIDES": sides, "DOUBLE": dtype == "fp64"}
        signature = {}
        for parameter in kernel.params:
            name = parameter.name
            kind = parameter.annotation_type or pointers.get(name, "*" + dtype)
            signature[name] = "constexpr" if name in constants else kind
        source = ASTSource(kernel, signature, constants)
        compiled = triton.compile(source, target=target, options={"num_warps": 4})
        code = compiled.asm["cubin" if target.backend == "cuda" else "hsaco"]
        print(dtype, kernel.__name__, sides, len(code) > 0)
"""

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
    """A construct that one compiler, NVIDIA's or AMD's, does not take."""
    lines = run_python("-c", TRITON, target).splitlines()
    assert len(lines) == 12
    assert all(line.endswith("True") for line in lines)


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
