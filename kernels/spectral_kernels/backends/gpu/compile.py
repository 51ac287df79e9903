"""Compile the kernels for a GPU that is not there, and count what the machine code holds.

`python -m spectral_kernels.backends.gpu.compile sm_90[,sm_80] [NAME ...]` compiles every variant
(or those whose name holds a NAME) and prints one JSON object for each; without names, for an NVIDIA
target, with the figures of the machine code. Triton's own wheel brings assembler and disassembler.
Run it without TRITON_INTERPRET, which turns kernels into plain Python.
"""

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from spectral_kernels.backends.gpu.machine_code import listings, usage
from spectral_kernels.backends.gpu.plan import LOW_RANK_REGISTERS
from spectral_kernels.backends.gpu.triton import kernels, nm, packing, rows
from spectral_kernels.reference.laws import Base, Shape

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
MODULES = (kernels, nm, packing, rows)
_ELEMENTS = {"fp16": 2, "bf16": 2, "fp32": 4, "fp64": 8}
#: Element types of pointers; None is that of the matrix. Other arguments carry annotations.
_POINTERS: dict[str, str | None] = {
    "src": None, "out": None, "kept": "i64", "table": "i64", "left": "fp32", "right": "fp32",
    "row": "fp32", "column": "fp32", "laws": "fp32", "thresholds": "i32", "tie_stops": "i64",
    "scores": "i32", "nonfinite": "i32", "sums": "fp64", "counts": "i64",
    "packed": "u8", "words": "i32", "starts": "i64", "columns": "i32", "values": None,
    "bits": "u8", "offsets": "i32", "x": None, "y": None,
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A kernel with its compile-time arguments; `absent` pointers are None.

    fused: whether a b + c may be one rounding. module: that has the kernel, if none of MODULES.
    """

    kernel: str
    dtype: str
    constants: dict[str, Any]
    label: str = ""
    absent: tuple[str, ...] = ("left", "right", "row", "column")
    pointers: dict[str, str] = field(default_factory=dict)
    warps: int = 1
    fused: bool = False
    module: Any = None

    @property
    def name(self) -> str:
        """For example "sample-fp32-l1-rescaled"."""
        return "-".join(part for part in (self.kernel, self.dtype, self.label) if part)

    @property
    def entries(self) -> int:
        """Entries of the matrix that one thread handles in each turn of the loop."""
        sizes = {"ROWS": 1, "COLUMNS": 1, "TILE": 1, "WORDS": 32, "BYTES": 8}
        tile = [
            self.constants[name] * each for name, each in sizes.items() if name in self.constants
        ]
        return int(math.prod(tile)) // (32 * self.warps)


@dataclass(frozen=True)
class Figures:
    """What the machine code of a variant holds; from an NVIDIA target.

    loop: instructions of its longest loop (a loop inside counts once); total: all of them; each
    also for one entry. load_bits, store_bits: the widest global accesses in that loop, or in all
    where there is none. local_bytes holds spilled registers.
    """

    name: str
    loop: int
    loop_per_entry: float
    total: int
    total_per_entry: float
    registers: int
    local_bytes: int
    shared_bytes: int
    load_bits: int
    store_bits: int
    matrix_units: bool


def variants() -> Iterator[Variant]:
    """Every kernel with every dtype, and each law, base and vector of `sample` in two of them."""
    for dtype, size in _ELEMENTS.items():
        columns = 512 if dtype == "fp64" else 1024
        tile = {"UNIT": 16 // size, "BASE": int(Base.MAGNITUDE), "ROWS": 1, "COLUMNS": columns,
                "DEPTH": 16, "DEPTHS": 0, "PRECISION": "tf32x3"}  # fmt: skip
        draw = {"SHAPE": int(Shape.L1), "BY_ROW": False, "RESCALE": True, "SKIP": 0}
        sample = Variant("sample", dtype, tile | draw, "l1-rescaled")
        yield sample
        if dtype in ("fp32", "bf16"):
            yield from _sample_variants(sample)
        others = (
            Variant("keep_largest", dtype, tile | {"BY_ROW": False}),
            Variant("histogram", dtype, tile),
            Variant("refine", dtype, tile),
            Variant(
                "count_between", dtype, tile | {"WHOLE_ROWS": False}, pointers={"table": "i32"}
            ),
            Variant("score_bits", dtype, tile, pointers={"out": "i32"}),
        )
        yield from others
        if dtype == "fp32":
            yield from (_low_rank(variant, Base.ALIGNED) for variant in others)
        for keep, of in ((2, 4), (4, 8)):
            groups = tile | {"COLUMNS": 512, "KEEP": keep, "OF": of}
            yield Variant("keep_largest_of", dtype, groups, f"{keep}:{of}")
            if of == 8 and dtype in ("fp16", "fp64"):
                continue  # three seconds of compiling for what 2:4 and the other two show
            drawn = groups | {"SHAPE": int(Shape.L1), "RESCALE": True, "SKIP": 0}
            yield Variant("sample_of", dtype, drawn, f"{keep}:{of}-rescaled")
        yield Variant("pack_bits", dtype, {"UNIT": 16 // size, "WORDS": 64}, warps=4)
        yield Variant("keep_bits", dtype, {"UNIT": 16 // size, "TILE": 1024}, warps=4)
        yield Variant("count_rows", dtype, {"UNIT": 16 // size, "COLUMNS": 2048}, warps=4)
        yield Variant("fill_rows", dtype, {"UNIT": 16 // size, "COLUMNS": 2048}, warps=4)
        yield Variant("row_l1", dtype, {"UNIT": 16 // size, "ROWS": 1, "COLUMNS": 1024}, warps=4)
    product: dict[str, Any] = {"UNIT": 4, "ROWS": 64, "COLUMNS": 64, "DEPTH": 16, "DEPTHS": 8}
    product["PRECISION"] = "tf32x3"
    yield Variant("masked_product", "fp32", product, "aligned", absent=(), warps=4)
    yield Variant("row_threshold", "fp32", {"COLUMNS": 4096}, warps=4)


def _low_rank(variant: Variant, base: Base) -> Variant:
    """The same with a score of low rank: 64, in tiles of the backend's size."""
    tile = {"BASE": int(base), "ROWS": 64, "COLUMNS": 64, "DEPTH": 16, "DEPTHS": 4}
    label = base.name.lower()
    constants = variant.constants | tile
    return replace(variant, label=label, constants=constants, absent=("row", "column"), warps=4)


def _sample_variants(sample: Variant) -> Iterator[Variant]:
    def changed(label: str, absent: tuple[str, ...] = sample.absent, **constants: Any) -> Variant:
        merged = sample.constants | constants
        return replace(sample, label=label, constants=merged, absent=absent)

    for shape in Shape:
        if shape != Shape.L1:
            yield changed(f"{shape.name.lower()}-rescaled", SHAPE=int(shape))
    yield changed("l1", RESCALE=False)
    yield changed("l1-rescaled-vectors", ("left", "right"), BY_ROW=True)
    yield changed("l1-rescaled-shifted", SKIP=3, UNIT=1, COLUMNS=512)
    yield changed("l1-rescaled-narrow", ROWS=32, COLUMNS=32)
    for base in (Base.PRINCIPAL, Base.ALIGNED, Base.MIXTURE):
        yield _low_rank(changed("l1", RESCALE=False), base)


def compile_variant(variant: Variant, target: GPUTarget) -> Any:
    """The compiled kernel, as Triton returns it; starts no device."""
    modules = MODULES if variant.module is None else (variant.module,)
    kernel = next(getattr(m, variant.kernel) for m in modules if hasattr(m, variant.kernel))
    constants = dict(variant.constants)
    if "NVIDIA" in kernel.arg_names:
        constants["NVIDIA"] = target.backend == "cuda"
    if target.backend != "cuda" and "PRECISION" in constants:
        constants["PRECISION"] = "ieee"
    constants |= {name: None for name in variant.absent if name in kernel.arg_names}
    signature, attributes = {}, {}
    for at, parameter in enumerate(kernel.params):
        name = parameter.name
        if name in constants:
            signature[name] = "constexpr"
        elif name in _POINTERS:
            signature[name] = "*" + (variant.pointers.get(name) or _POINTERS[name] or variant.dtype)
            attributes[(at,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = parameter.annotation_type
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": variant.warps, "num_stages": 2, "enable_fp_fusion": variant.fused}
    if "left" in kernel.arg_names and "left" not in variant.absent and target.backend == "cuda":
        options["maxnreg"] = LOW_RANK_REGISTERS
    return triton.compile(source, target=target, options=options)


def figures(
    compiled: Iterable[tuple[Variant, Any]], target: GPUTarget
) -> Iterator[tuple[Variant, Figures]]:
    """Read the machine code of variants that were compiled for an NVIDIA target."""
    compiled = list(compiled)
    listed = listings([kernel.asm["cubin"] for _, kernel in compiled], target.arch)
    for (variant, kernel), listing in zip(compiled, listed, strict=True):
        found = usage(kernel.asm["cubin"])
        text = [re.sub(r"^@!?U?P\w+ ", "", line) for line in listing.instructions]
        body = text[slice(*listing.loop)]
        yield (
            variant,
            Figures(
                name=variant.name,
                loop=len(body),
                loop_per_entry=round(len(body) / variant.entries, 2),
                total=len(text),
                total_per_entry=round(len(text) / variant.entries, 2),
                registers=found["REG"],
                local_bytes=found["STACK"] + found["LOCAL"],
                shared_bytes=kernel.metadata.shared,
                load_bits=_width(body or text, "LDG"),
                store_bits=_width(body or text, "STG"),
                matrix_units=any("MMA.1" in line or "GMMA" in line for line in text),
            ),
        )


def offset_bits(ttir: str) -> list[int]:
    """Widths of the offsets that are added to the matrix's own pointers, in Triton's first IR."""
    pointers, bits = {"%src", "%out"}, set()
    for line in ttir.splitlines():
        step = re.match(r"\s*(%\w+) = tt\.(splat|broadcast|addptr) (%\w+)", line)
        if step and step[3] in pointers:
            pointers.add(step[1])
            if step[2] == "addptr":
                width = re.search(r"i(\d+)>?$", line.split(" loc(")[0])
                bits.add(int(width[1]) if width else 0)
    return sorted(bits)


def _width(body: list[str], operation: str) -> int:
    """The widest access of an operation; without a suffix it moves 32 bits."""
    widths = [0]
    for line in body:
        if line.startswith(operation + "."):
            size = re.search(r"\.(?:[US]?(8|16)|(64|128))\b", line.split()[0])
            widths.append(int(size[1] or size[2]) if size else 32)
    return max(widths)


def main(targets: str, *names: str) -> None:
    """Compile, and print a line of JSON for each variant and target.

    Without names, of all for an NVIDIA target, the line has the figures of the machine code too.
    """
    wanted = [v for v in variants() if not names or any(name in v.name for name in names)]
    for name in targets.split(","):
        target = TARGETS[name]
        compiled = [(variant, compile_variant(variant, target)) for variant in wanted]
        found = {}
        if target.backend == "cuda" and not names:
            found = {variant.name: each for variant, each in figures(compiled, target)}
        for variant, kernel in compiled:
            line: dict[str, Any] = {
                "name": variant.name, "target": name,
                "offset_bits": offset_bits(kernel.asm["ttir"]),
            }  # fmt: skip
            if variant.name in found:
                line |= asdict(found[variant.name])
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
