"""English sentences and words that most machines have: Python's docstrings and licence texts.

Documents, not sentences, are split: a module's docstrings are wholly for calibration or wholly held
out, and so is a licence. A sentence that occurs on both sides is dropped.
"""

import ast
import re
import sysconfig
import zlib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

#: Where Debian keeps licence texts; on other systems there are none.
LICENCES = Path("/usr/share/common-licenses")
HELD_OUT_LICENCE = "GPL-3"
CALIBRATION_LICENCES = ("Apache-2.0", "Artistic", "GFDL-1.3", "MPL-2.0")
WORDS = (5, 50)


@cache
def sentences() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(calibration, held out), in an order that depends on the sentences alone."""
    calibration: set[str] = set()
    held_out: set[str] = set()
    for name, text in documents():
        chosen = held_out if is_held_out(name) else calibration
        chosen.update(_split(text))
    both = calibration & held_out
    return tuple(sorted(calibration - both, key=_mix)), tuple(sorted(held_out - both, key=_mix))


def words() -> tuple[list[str], list[str]]:
    """(calibration, held out) words of 4 to 14 letters that occur in the sentences."""
    text = " ".join(side for both in sentences() for side in both).lower()
    found = sorted(set(re.findall(r"\b[a-z]{4,14}\b", text)), key=_mix)
    return found[::2], found[1::2]


def by_length(rows: list[list[int]], largest: int) -> list[torch.Tensor]:
    """Rows of numbers as batches (at most `largest`, length), one length a batch."""
    found: dict[int, list[list[int]]] = defaultdict(list)
    for row in rows:
        found[len(row)].append(row)
    return [
        torch.tensor(rows[start : start + largest])
        for _, rows in sorted(found.items())
        for start in range(0, len(rows), largest)
    ]


def is_held_out(document: str) -> bool:
    """Whether a document is for measuring, and not to calibrate on."""
    return document == HELD_OUT_LICENCE or _mix(document) % 5 == 0


def documents() -> Iterator[tuple[str, str]]:
    """Name and text: licences, and the documentation strings of each module."""
    for name in (HELD_OUT_LICENCE, *CALIBRATION_LICENCES):
        if (LICENCES / name).is_file():
            yield name, (LICENCES / name).read_text(encoding="utf-8")
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        found = []
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                found.append(ast.get_docstring(node) or "")
        yield path.name, "\n\n".join(found)


def _split(text: str) -> Iterator[str]:
    """Sentences of plain words: no code, no tables, no headings."""
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in re.split(r"(?<=[.!?:])\s+", " ".join(paragraph.split())):
            words = sentence.split()
            plain = sum(word.strip(".,;:'\"()").isalpha() for word in words)
            if WORDS[0] <= len(words) <= WORDS[1] and plain >= 0.8 * len(words):
                yield sentence


def _mix(text: str) -> int:
    """A number that shuffles, the same on every machine."""
    return zlib.crc32(text.encode())
