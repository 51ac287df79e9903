"""Every Triton kernel against the oracle, bit for bit, on the device of the matrices.

A check makes its own data, runs one operation of the GPU backend, and returns what differs, or
nothing. Where scores come out of a matrix product its factors are small integers, so that the
product is exact on every device.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from spectral_kernels import LAW_NAMES, sparsify
from spectral_kernels.backends.gpu import packed as on_gpu
from spectral_kernels.backends.gpu.backend import GPU, GPUBackend
from spectral_kernels.backends.protocol import Draw, LawTable, Matrix, Scoring, Thresholds
from spectral_kernels.reference import nm, oracle, packed, rows, stream
from spectral_kernels.reference.laws import Base, Shape
from spectral_kernels.reference.patterns import NM

DTYPES = ("float32", "bfloat16", "float16", "float64")
#: A solved law of each shape that keeps some entries of a standard normal matrix, and caps some.
LAWS = {
    Shape.L1: oracle.Scale(2.0**22),
    Shape.L2: oracle.Scale(2.0**21, scale=0.5),
    Shape.HYBRID: oracle.Scale(2.0**22, alpha=0.3, beta=0.7),
    Shape.MAXIMUM: oracle.Scale(2.0**21, beta=1.7),
    Shape.TRIMMED: oracle.Scale(2.0**22, alpha=0.5),
}
WEIGHTS = (0.75, 0.5)
RANK = 40  # not a multiple of a tile's depth
SPARSITY = 0.7

Check = Callable[[], str]


def differs(found: Any, expected: Any) -> str:
    """Empty where two arrays agree in dtype, shape and every bit, else where they do not."""
    found, expected = np.ascontiguousarray(found), np.ascontiguousarray(expected)
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return f"{found.dtype} {found.shape}, expected {expected.dtype} {expected.shape}"
    kind = f"u{found.dtype.itemsize}"
    places = np.argwhere(np.atleast_1d(found.view(kind) != expected.view(kind)))
    if len(places) == 0:
        return ""
    first = tuple(int(index) for index in places[0])
    got, wanted = np.atleast_1d(found)[first], np.atleast_1d(expected)[first]
    return f"{len(places)} of {found.size} differ, first at {first}: {got!r}, expected {wanted!r}"


@dataclass(frozen=True)
class Subject:
    """One (m, n) matrix with zeros, ties and a subnormal, its scoring, and the same to the oracle.

    vectors: the score has a row and a column vector too.
    """

    m: int
    n: int
    dtype: str
    device: str
    base: Base = Base.MAGNITUDE
    vectors: bool = False
    backend: GPUBackend = field(default=GPU)

    @cached_property
    def array(self) -> torch.Tensor:
        """The matrix on the device."""
        values = np.random.default_rng(self.m + self.n).standard_normal((self.m, self.n))
        values[np.abs(values) < 0.05] = 0.0
        values[:, ::7] = np.round(values[:, ::7], 1)
        values[-1, -1] = -3e-39 if self.dtype != "float16" else -3e-7
        return torch.tensor(values).to(getattr(torch, self.dtype)).to(self.device)

    @cached_property
    def values(self) -> NDArray[Any]:
        """The matrix as the oracle takes it."""
        return host(self.array)

    @cached_property
    def matrix(self) -> Matrix:
        """The matrix as the backend takes it."""
        return self.backend.matrix(self.array)

    @cached_property
    def scoring(self) -> Scoring:
        """How it is scored."""
        rng = np.random.default_rng(1)
        left = right = row = column = None
        if self.base != Base.MAGNITUDE:
            left = self._vector(rng.integers(-3, 4, (self.m, RANK)))
            right = self._vector(rng.integers(-3, 4, (RANK, self.n)) / 16)
        if self.vectors:
            row = self._vector(rng.uniform(0.5, 2.0, self.m))
            column = self._vector(rng.uniform(0.5, 2.0, self.n))
        return Scoring(self.base, left, right, WEIGHTS, row, column)

    def _vector(self, values: NDArray[Any]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    @cached_property
    def scores(self) -> NDArray[np.float32]:
        """The oracle's scores."""
        given = self.scoring
        parts = (given.left, given.right, given.row, given.column)
        left, right, row, column = (None if part is None else host(part) for part in parts)
        B = None if left is None or right is None else oracle.low_rank(left, right)
        return oracle.score(self.values, self.base, B, WEIGHTS, row, column)

    def empty(self) -> tuple[torch.Tensor, Matrix]:
        """An output full of NaN, which shows what was not written."""
        out = torch.full_like(self.array, torch.nan)
        return out, self.backend.matrix(out)

    @property
    def budget(self) -> int:
        """K of the whole matrix."""
        return self.matrix.size - round(SPARSITY * self.matrix.size)


def host(tensor: torch.Tensor) -> NDArray[Any]:
    """A tensor as the oracle takes it: bfloat16 as float32."""
    tensor = tensor.cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def sample(subject: Subject, shape: Shape, rescale: bool, draw: Draw, by_row: bool) -> str:
    """Entries drawn, their values, and how many."""
    law, (out, matrix) = LAWS[shape], subject.empty()
    groups = subject.m if by_row else 1
    table = np.array([(law.C, law.alpha, law.beta, law.scale)] * groups, np.float32)
    table[:, 0] *= 1.0 + np.arange(groups, dtype=np.float32) % 5
    kept = subject.backend.sample(
        subject.matrix, subject.scoring, LawTable(table, shape, rescale), draw, matrix
    )
    t = np.concatenate([
        oracle.probabilities(part, shape, oracle.Scale(*map(float, row)))
        for part, row in zip(np.split(subject.scores, groups), table, strict=True)
    ])  # fmt: skip
    expected = oracle.sample(
        subject.values, t, rescale=rescale, seed=draw.seed, stream=draw.stream,
        row_offset=draw.row, column_offset=draw.column,
    )  # fmt: skip
    if subject.dtype == "bfloat16":
        expected = oracle.round_bfloat16(expected)
    return differs(host(out), expected) or differs(kept, np.count_nonzero(expected))


def keep_largest(subject: Subject) -> str:
    """Exactly K entries, ties cut in the order of the matrix."""
    mask = oracle.threshold_mask(subject.scores, subject.budget)
    threshold = subject.scores[mask].min()
    ties = np.flatnonzero(subject.scores == threshold)
    stop = int(ties[mask.ravel()[ties]][-1]) + 1
    out, matrix = subject.empty()
    thresholds = Thresholds(np.array([threshold]).view(np.uint32), np.array([stop]))
    kept = subject.backend.keep_largest(subject.matrix, subject.scoring, thresholds, matrix)
    expected = np.where(mask, subject.values, subject.values.dtype.type(0))
    return differs(host(out), expected) or differs(kept, np.count_nonzero(expected))


def histogram(subject: Subject) -> str:
    """Counts and sums of low bits."""
    found = subject.backend.histogram(subject.matrix, subject.scoring)
    return differs(np.stack(found), np.stack(oracle.histogram(subject.scores)))


def refine(subject: Subject) -> str:
    """The scores of the fullest bin."""
    cut = int(oracle.histogram(subject.scores)[0].argmax())
    found = subject.backend.refine(subject.matrix, subject.scoring, cut)
    return differs(np.stack(found), np.stack(oracle.refine(subject.scores, cut)))


def tie_stop(subject: Subject) -> str:
    """Where half of the most frequent score has been passed."""
    positive = subject.scores[subject.scores > 0].view(np.uint32)
    patterns, counts = np.unique(positive, return_counts=True)
    pattern, wanted = int(patterns[counts.argmax()]), max(1, int(counts.max()) // 2)
    places = np.flatnonzero(subject.scores.view(np.uint32) == pattern)
    found = subject.backend.tie_stop(subject.matrix, subject.scoring, pattern, wanted)
    return differs(found, int(places[wanted - 1]) + 1)


def all_finite(subject: Subject) -> str:
    """True as it is, false with one infinity or NaN at the very end."""
    found = [subject.backend.all_finite(subject.matrix)]
    for value in (torch.inf, torch.nan):
        array = subject.array.clone()
        array[-1, -1] = value
        found.append(subject.backend.all_finite(subject.backend.matrix(array)))
    return differs(found, [True, False, False])


def score_bits(subject: Subject) -> str:
    """The scores themselves."""
    found = subject.backend.score_bits(subject.matrix, subject.scoring)
    return differs(found, subject.scores.view(np.uint32))


def row_threshold(subject: Subject) -> str:
    """The rows' own thresholds, by what is kept with them."""
    budget = subject.n - round(SPARSITY * subject.n)
    found, stops, nonfinite = subject.backend.row_thresholds(
        subject.matrix, subject.scoring, budget
    )
    threshold = found.view(np.float32)[:, None]
    late = np.arange(subject.n)[None, :] >= stops[:, None]
    kept = (subject.scores > threshold) | ((subject.scores == threshold) & ~late)
    expected = np.stack([oracle.threshold_mask(s[None, :], budget)[0] for s in subject.scores])
    positive = subject.scores > 0  # which zeros are kept does not show
    return differs(kept & positive, expected & positive) or differs(nonfinite, 0)


def row_l1(subject: Subject) -> str:
    """Sums of the rows' magnitudes."""
    return differs(
        subject.backend.row_l1(subject.matrix),
        rows.row_l1(np.abs(subject.values).astype(np.float32)),
    )


def keep_largest_of(subject: Subject, pattern: NM) -> str:
    """The largest of every group, and how many are not zero."""
    out, matrix = subject.empty()
    found = subject.backend.keep_largest_of(subject.matrix, subject.scoring, pattern, matrix)
    mask = nm.largest(subject.scores, pattern.keep, pattern.of)
    expected = np.where(mask, subject.values, subject.values.dtype.type(0))
    return differs(host(out), expected) or differs(found[0], np.count_nonzero(expected))


def sample_of(subject: Subject, pattern: NM, shape: Shape, draw: Draw) -> str:
    """Entries drawn in every group."""
    out, matrix = subject.empty()
    found = subject.backend.sample_of(
        subject.matrix, subject.scoring, pattern, shape, False, draw, matrix
    )
    t = nm.inclusion(subject.scores, shape, pattern.keep, pattern.of)
    word = stream.words(
        t.shape, draw.seed, draw.stream, row_offset=draw.row, column_offset=draw.column
    )
    keep = nm.drawn(t, word, pattern.of)
    expected = np.where(keep, subject.values, subject.values.dtype.type(0))
    return differs(host(out), expected) or differs(found[0], np.count_nonzero(expected))


def packing(subject: Subject) -> str:
    """Bits, what they keep, and compressed rows."""
    bits, expected = on_gpu.pack_bits(subject.array), packed.pack_bits(subject.values)
    shuffled = bits.flip(0)
    mask = packed.unpack_bits(host(shuffled), subject.values.shape)
    kept = np.where(mask, subject.values, subject.values.dtype.type(0))
    rows_found = on_gpu.compressed_rows(subject.array)
    starts, columns, values = packed.compressed_rows(subject.values)
    return (
        differs(host(bits), expected)
        or differs(host(on_gpu.keep_bits(subject.array, shuffled)), kept)
        or differs(host(rows_found[0]).astype(np.int64), starts)
        or differs(host(rows_found[1]).astype(np.int64), columns)
        or differs(host(rows_found[2]), values)
    )


def masked_product(subject: Subject) -> str:
    """left @ right + X on a mask; integers, so that the product is exact."""
    left, right = subject.scoring.left, subject.scoring.right
    X = torch.round(4 * subject.array)
    bits = on_gpu.pack_bits(subject.array)
    found = on_gpu.masked_product(left, right, bits, X, 0.5)
    expected = packed.masked_product(host(left), host(right), host(bits), host(X), 0.5)
    return differs(host(found), expected)


def whole(subject: Subject, law: str, group: str) -> str:
    """`sparsify` from end to end, against the same call on the CPU."""
    arguments: dict[str, Any] = {"sparsity": SPARSITY, "law": law, "group": group, "seed": 5}
    expected = sparsify(subject.array.cpu(), **arguments)
    found = sparsify(subject.array, **arguments)
    return differs(host(found.weight), host(expected.weight)) or differs(
        np.array([found.nnz, found.c]), np.array([expected.nnz, expected.c])
    )


def checks(m: int, n: int, device: str, backend: GPUBackend = GPU) -> Iterator[tuple[str, Check]]:
    """Every kernel in every dtype, and the variants of its arguments in one or two."""

    def subject(dtype: str, base: Base = Base.MAGNITUDE, vectors: bool = False) -> Subject:
        return Subject(m, n, dtype, device, base, vectors, backend)

    at_origin, far = Draw(seed=7, stream=3), Draw(2**64 - 3, 2**32 - 1, 2**33 + 5, 2**33 + 6)
    for dtype in DTYPES:
        plain = subject(dtype)
        yield f"sample {dtype} l1", partial(sample, plain, Shape.L1, True, at_origin, False)
        for check in (keep_largest, histogram, refine, tie_stop, all_finite, row_threshold, row_l1):
            yield f"{check.__name__} {dtype}", partial(check, plain)
    for dtype in ("float32", "bfloat16"):
        plain, vectors = subject(dtype), subject(dtype, vectors=True)
        for shape in LAWS:
            yield (
                f"sample {dtype} {shape.name.lower()}, not rescaled",
                partial(sample, plain, shape, False, at_origin, False),
            )
        yield f"sample {dtype}, far out", partial(sample, plain, Shape.L1, True, far, False)
        yield f"sample {dtype}, vectors", partial(sample, vectors, Shape.L1, True, far, True)
        yield f"histogram {dtype}, vectors", partial(histogram, vectors)
    for dtype in ("float32", "bfloat16"):
        # A whole number of groups to a row.
        grouped = Subject(m, n - n % 8, dtype, device, backend=backend)
        for pattern in (NM(2, 4), NM(4, 8)):
            name = f"{pattern} {dtype}"
            yield f"keep_largest_of {name}", partial(keep_largest_of, grouped, pattern)
            yield f"sample_of {name}", partial(sample_of, grouped, pattern, Shape.L1, at_origin)
        yield f"packing {dtype}", partial(packing, subject(dtype))
    low_rank = subject("float32", Base.PRINCIPAL)
    yield "masked_product float32", partial(masked_product, low_rank)
    yield "score_bits float32", partial(score_bits, subject("float32", vectors=True))
    for base in (Base.PRINCIPAL, Base.ALIGNED, Base.MIXTURE):
        low_rank, name = subject("float32", base), base.name.lower()
        yield f"sample {name}", partial(sample, low_rank, Shape.L1, False, at_origin, False)
        yield f"keep_largest {name}", partial(keep_largest, low_rank)
        yield f"histogram {name}", partial(histogram, low_rank)
    if device != "cpu":  # else both would be the CPU's own kernels
        for law in LAW_NAMES:
            for group in ("tensor", "row"):
                yield f"sparsify {law} by {group}", partial(whole, subject("float32"), law, group)
