"""What the machine code of the Triton kernels holds, without a GPU: one line per kernel and dtype.

    python bench/gpu/sass.py                         every variant, for sm_90
    python bench/gpu/sass.py --target sm_100 sample  those whose name holds "sample"

"loop" counts the instructions of the loop that walks over the matrix, a loop inside it once; "all"
counts the whole kernel; both for one entry. Loads and stores are the widest global accesses of the
loop, in bits.
"""

import argparse

from spectral_kernels.backends.gpu.compile import (
    TARGETS,
    Figures,
    compile_variant,
    figures,
    variants,
)
from spectral_kernels.product.gpu.variants import product_variants

NVIDIA = [name for name, target in TARGETS.items() if target.backend == "cuda"]
COLUMNS = "loop", "all", "registers", "spilled B", "shared B", "load", "store", "matrix units"
LAYOUT = "{:<32}" + "{:>11}" * 7 + "{:>14}"


def row(found: Figures) -> str:
    """A line of the table."""
    cells = (
        found.loop_per_entry, found.total_per_entry, found.registers, found.local_bytes,
        found.shared_bytes, found.load_bits, found.store_bits, "yes" if found.matrix_units else "",
    )  # fmt: skip
    return LAYOUT.format(found.name, *cells)


def main() -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of the names wanted; all if none")
    parser.add_argument("--target", choices=NVIDIA, default="sm_90")
    arguments = parser.parse_args()
    wanted = [
        variant for variant in (*variants(), *product_variants())
        if not arguments.names or any(name in variant.name for name in arguments.names)
    ]  # fmt: skip
    target = TARGETS[arguments.target]
    compiled = [(variant, compile_variant(variant, target)) for variant in wanted]
    print(LAYOUT.format(arguments.target, *COLUMNS))
    for _, found in figures(compiled, target):
        print(row(found))


if __name__ == "__main__":
    main()
