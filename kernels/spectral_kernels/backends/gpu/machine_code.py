"""NVIDIA's machine code read back, by the disassembler that Triton's own wheel brings.

The disassembler takes a third of a second to start and a twentieth for a kernel: so all kernels go
through it in one file, as bare code. What it then prints are addresses in that file, not labels.
"""

import re
import struct
import subprocess
import tempfile
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import triton

_LINE = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?!\s*NOP)([^;]+?)\s*;")
_BRANCH = re.compile(r"\bBRA(?:\.\w+)*\s.*\b0x([0-9a-f]+)")
#: Of a section header, ELF64: its name, where it lies, and how long it is.
_SECTION = struct.Struct("<I20xQQ24x")


@dataclass(frozen=True)
class Listing:
    """The instructions of a kernel, without padding, and the span of the longest loop."""

    instructions: list[str]
    loop: tuple[int, int]


def listings(cubins: Sequence[bytes], capability: int) -> list[Listing]:
    """What each of some kernels holds.

    Args:
        cubins: as Triton compiles them, a kernel each.
        capability: of the GPU that they are for: 90.

    Returns:
        One for each.
    """
    codes = [_code(cubin) for cubin in cubins]
    found: list[tuple[int, str]] = []
    for line in _tool("nvdisasm", "-b", f"SM{capability}", data=b"".join(codes)).splitlines():
        if instruction := _LINE.match(line):
            found.append((int(instruction[1], 16), instruction[2]))
    listed, start = [], 0
    for code in codes:
        end = start + len(code)
        listed.append(_listing([pair for pair in found if start <= pair[0] < end]))
        start = end
    return listed


def usage(cubin: bytes) -> dict[str, int]:
    """Registers (REG), and bytes of memory by kind (STACK, LOCAL, SHARED), that a kernel takes."""
    said = _tool("cuobjdump", "-res-usage", data=cubin)
    return {name: int(number) for name, number in re.findall(r"(\w+):(\d+)", said)}


def _listing(found: list[tuple[int, str]]) -> Listing:
    addresses = [address for address, _ in found]
    loops = [(0, 0)]
    for at, (address, line) in enumerate(found):
        branch = _BRANCH.search(line)
        # A jump to itself closes every kernel; it is no loop.
        if branch and int(branch[1], 16) < address:
            loops.append((bisect_left(addresses, int(branch[1], 16)), at + 1))
    return Listing([line for _, line in found], max(loops, key=lambda span: span[1] - span[0]))


def _code(cubin: bytes) -> bytes:
    """The instructions of the one kernel in an ELF file."""
    (headers,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    sections = [_SECTION.unpack_from(cubin, headers + at * size) for at in range(count)]
    for name, offset, length in sections:
        if cubin.startswith(b".text.", sections[names][1] + name):
            return cubin[offset : offset + length]
    raise ValueError(f"cubin: expected a section .text.*; got {count} others")


def _tool(name: str, *options: str, data: bytes) -> str:
    """Output of a tool of the CUDA toolkit, which Triton's wheel carries."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(data)
        file.flush()
        command = [str(tool), *options, file.name]
        done = subprocess.run(command, capture_output=True, check=True)
    return (done.stdout + done.stderr).decode()
