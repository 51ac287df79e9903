"""Bad input is refused with its argument, what was expected and what came."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from spectral_kernels import (
    sparsify,
)

from tests.support.cases import (
    DTYPES,
    GROUPS,
    as_numpy,
    case,
    integer_factors,
    isolated,
    mixed_values,
    normal_matrix,
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("group", GROUPS)
def test_not_finite_is_refused(dtype: str, bad: float, group: str) -> None:
    """NaN that sorts above everything and is kept, or an infinity that takes the whole budget."""
    values = mixed_values((37, 203), 10)
    values[36, 202] = bad
    A = case(values, dtype).array
    for law in ("threshold", "l1", "hybrid"):
        for sparsity in (0.0, 0.5, 0.999):
            with pytest.raises(ValueError, match=r"weight: expected finite.*got 1 .*NaN or inf"):
                sparsify(A, sparsity=sparsity, law=law, group=group)


@pytest.mark.parametrize("score", ["principal", "aligned", "mixture"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("group", GROUPS)
def test_not_finite_is_refused_under_spectral_scores(score: str, bad: float, group: str) -> None:
    """A NaN that a spectral score does not see: it looks at the low rank, or takes max(., 0)."""
    A = normal_matrix()
    A[3, 7] = bad
    left, right = integer_factors(*A.shape)
    left[3], right[:, 7] = (-1.0, 2.0, 1.0), (1.0, 1.0, -3.0)  # B = -2 there
    for law in ("threshold", "l1"):
        with pytest.raises(ValueError, match="weight: expected finite"):
            sparsify(
                A, sparsity=0.5, law=law, score=score, factors=(left, right),
                mixture=(1.0, 1.0), group=group,
            )  # fmt: skip


ONE_CALL = """
import sys
import numpy as np
import spectral_kernels as sk
A = np.random.default_rng(0).standard_normal((37, 203)).astype(np.float32)
row, column = np.ones(37, np.float32), np.ones(203, np.float32)
inf, nan = np.float32(np.inf), np.float32(np.nan)
exec(sys.argv[1])
for _ in range(10):
    try:
        out = sk.sparsify(A, sparsity=0.5, **options)
    except ValueError as error:
        print(error)
    else:
        print("accepted:", out.nnz)
"""


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ("row[3] = -1; options = dict(row=row)", "row: expected"),
        ("row[3] = -1; options = dict(row=row, law='l1', group='row')", "row: expected"),
        ("column[3] = -1; options = dict(column=column, law='l1')", "column: expected"),
        ("column[3] = nan; options = dict(column=column)", "column: expected"),
        ("row[3] = inf; options = dict(row=row)", "row: expected"),
        ("row[3] = -1; options = dict(row=row, law='row-l1')", "row: expected"),
        ("A[3, 7] = inf; options = dict(law='row-l1')", "weight: expected finite"),
        ("A[3, 7] = -inf; options = dict(law='bernstein')", "weight: expected finite"),
        ("A[3, 7] = inf; A[3, 8] = nan; options = dict(law='row-l1')", "weight: expected finite"),
        ("A[3, 7] = inf; column[7] = 0; options = dict(column=column)", "weight: expected finite"),
        ("A[3, 7] = -inf; row[3] = 0; options = dict(row=row, group='row', law='l1')",
         "weight: expected finite"),
    ],
)  # fmt: skip
def test_scores_with_a_sign_are_refused(setup: str, message: str) -> None:
    """A score whose sign bit is set, NaN from inf * 0 included, counted outside of the histogram.

    Such a count is written to memory that is not the histogram's: the test runs apart.
    """
    done = isolated(ONE_CALL, setup)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stdout}{done.stderr[-500:]}"
    lines = done.stdout.splitlines()
    assert len(lines) == 10
    assert all(line.startswith(message) for line in lines), lines[0]


def test_minus_zero_weighs_nothing() -> None:
    """A vector's -0.0, whose product has the sign bit set, counted outside of the histogram."""
    code = "column[3] = -0.0; options = dict(column=column, law='l1')"
    done = isolated(ONE_CALL, code)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-500:]}"
    plain = isolated(ONE_CALL, code.replace("-0.0", "0.0"))
    assert done.stdout == plain.stdout or done.stdout.startswith("column: expected")


A2 = np.ones((4, 6), np.float32)
L2, R2 = np.ones((4, 2), np.float32), np.ones((2, 6), np.float32)
BAD_ARGUMENTS: list[tuple[dict[str, Any], Any, str]] = [
    ({"sparsity": 1.0}, ValueError, r"sparsity: expected .*\[0, 1\); got 1\.0"),
    ({"sparsity": -0.1}, ValueError, r"sparsity: expected .*\[0, 1\); got -0\.1"),
    ({"sparsity": math.nan}, ValueError, r"sparsity: expected .*\[0, 1\); got nan"),
    ({"sparsity": 90}, ValueError, r"sparsity: expected .*\[0, 1\); got 90"),
    ({"sparsity": True}, TypeError, r"sparsity: expected a number; got bool"),
    ({"sparsity": "0.5"}, TypeError, r"sparsity: expected a number; got str"),
    ({"sparsity": None}, TypeError, r"sparsity: expected a number; got NoneType"),
    ({"sparsity": 0.5j}, TypeError, r"sparsity: expected a number; got complex"),
    ({"law": "l3"}, ValueError, r"law: expected one of threshold, l1, .*; got 'l3'"),
    ({"law": None}, ValueError, r"law: expected one of .*; got None"),
    ({"score": "size"}, ValueError, r"score: expected one of magnitude, .*; got 'size'"),
    ({"group": "column"}, ValueError, r"group: expected one of tensor, row; got 'column'"),
    ({"law": "l1", "law_parameter": 0.5}, ValueError, r"law_parameter: .*takes none; got 0\.5"),
    ({"law": "hybrid", "law_parameter": 1.5}, ValueError, r"law_parameter: .*\[0, 1\]; got 1\.5"),
    ({"law": "hybrid", "law_parameter": math.nan}, ValueError, r"law_parameter: .*; got nan"),
    ({"law": "hybrid", "law_parameter": "a"}, TypeError, r"law_parameter: expected .*; got "),
    ({"law": "am07", "law_parameter": 0.0}, ValueError, r"law_parameter: .*positive; got 0\.0"),
    ({"law": "am07", "law_parameter": math.inf}, ValueError, r"law_parameter: .*; got inf"),
    ({"law": "am07", "law_parameter": -1}, ValueError, r"law_parameter: .*positive; got -1"),
    ({"seed": -1}, ValueError, r"seed: expected an integer in \[0, 2\^64\); got -1"),
    ({"seed": 2**64}, ValueError, r"seed: expected .*\[0, 2\^64\); got 18446744073709551616"),
    ({"seed": 1.0}, TypeError, r"seed: expected an integer; got float"),
    ({"seed": "1"}, TypeError, r"seed: expected an integer; got str"),
    ({"seed": True}, TypeError, r"seed: expected an integer; got bool"),
    ({"seed": None}, TypeError, r"seed: expected an integer; got NoneType"),
    ({"stream": 2**32}, ValueError, r"stream: expected .*\[0, 2\^32\); got 4294967296"),
    ({"stream": "fc1.weight"}, TypeError, r"stream: expected an integer; got str"),
    ({"row_offset": -1}, ValueError, r"row_offset: expected an integer in .*; got -1"),
    ({"column_offset": -4}, ValueError, r"column_offset: expected an integer in .*; got -4"),
    ({"column_offset": 2**34}, ValueError, r"column_offset: expected .*; got 17179869184"),
    # The last columns would draw what the first ones draw.
    ({"column_offset": 2**34 - 3, "law": "l1"}, ValueError, r"column_offset: expected"),
    ({"row": np.ones(3, np.float32)}, ValueError, r"row: expected shape \(4,\); got \(3,\)"),
    ({"row": np.ones((4, 1), np.float32)}, ValueError, r"row: expected .*; got \(4, 1\)"),
    ({"column": np.ones(4, np.float32)}, ValueError, r"column: expected .*\(6,\); got \(4,\)"),
    ({"row": [1.0, 1, 1, 1]}, TypeError, r"row: expected .*got .*list"),
    ({"column": [1.0] * 6}, TypeError, r"column: expected .*got .*list"),
    ({"row": [1.0, 1, 1, 1], "law": "row-l1"}, TypeError, r"row: expected .*got .*list"),
    ({"row": np.ones(1, np.float32), "law": "row-l1"}, ValueError, r"row: expected .*got \(1,\)"),
    ({"row": np.ones(3, np.float32), "law": "bernstein"}, ValueError, r"row: expected .*\(3,\)"),
    ({"score": "principal"}, ValueError, r"factors: expected .*'principal'; got None"),
    ({"score": "principal", "factors": (L2, R2.T)}, ValueError, r"factors: expected .*\(6, 2\)"),
    ({"score": "aligned", "factors": (L2.T, R2)}, ValueError, r"factors: expected .*\(2, 4\)"),
    ({"score": "principal", "factors": (L2, R2[0])}, ValueError, r"factors: expected .*\(6,\)"),
    ({"score": "principal", "factors": (L2[:, 0], R2)}, ValueError, r"factors: expected .*\(4,\)"),
    ({"score": "principal", "factors": (np.ones(()), R2)}, ValueError, r"factors: expected"),
    ({"score": "principal", "factors": (L2, np.ones(2))}, ValueError, r"factors: expected"),
    ({"score": "principal", "factors": (L2, np.ones(()))}, ValueError, r"factors: expected"),
    ({"score": "principal", "factors": (L2,)}, (TypeError, ValueError), r"factors: expected"),
    ({"score": "principal", "factors": (L2[:, :0], R2[:0])}, ValueError, r"factors: expected"),
    ({"score": "principal", "factors": L2}, (TypeError, ValueError), r"factors: expected"),
    ({"score": "principal", "factors": (L2 * np.nan, R2)}, ValueError, r"factors: expected finite"),
    ({"score": "mixture", "factors": (L2, R2)}, ValueError, r"mixture: expected .*got \(0\.0, 0"),
    ({"score": "mixture", "factors": (L2, R2), "mixture": (1.0,)}, ValueError, r"mixture: exp"),
    ({"score": "mixture", "factors": (L2, R2), "mixture": (1.0, math.nan)}, ValueError,
     r"mixture: expected .*nan"),
    ({"score": "mixture", "factors": (L2, R2), "mixture": None}, (TypeError, ValueError),
     r"mixture: expected"),
    ({"rescale": "no", "law": "l1"}, TypeError, r"rescale: expected .*bool.*got "),
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "error", "message"),
    BAD_ARGUMENTS,
    ids=lambda value: re.sub(r"\W+", " ", str(value))[:60] if isinstance(value, dict) else "",
)
def test_bad_arguments(options: dict[str, Any], error: Any, message: str) -> None:
    """A wrong argument taken silently, or an error from deep inside that does not name it."""
    with pytest.raises(error, match=message):
        sparsify(A2, **({"sparsity": 0.5} | options))


BAD_WEIGHTS: list[tuple[Any, Any, str]] = [
    ([[1.0, 2.0]], TypeError, r"weight: expected a NumPy array.*got builtins\.list"),
    (None, TypeError, r"weight: expected a NumPy array.*got builtins\.NoneType"),
    (3.0, TypeError, r"weight: expected a NumPy array.*got builtins\.float"),
    (np.float32(3.0), TypeError, r"weight: expected a NumPy array.*got numpy\.float32"),
    (np.array(3.0), ValueError, r"weight: expected two dimensions or more; got shape \(\)"),
    (np.ones(5), ValueError, r"weight: expected two dimensions or more; got shape \(5,\)"),
    (torch.ones(5), ValueError, r"weight: expected two dimensions or more; got shape \(5,\)"),
    (np.ones((0, 5)), ValueError, r"weight: expected at least one entry; got shape \(0, 5\)"),
    (np.ones((5, 0)), ValueError, r"weight: expected at least one entry; got shape \(5, 0\)"),
    (np.ones((2, 0, 3)), ValueError, r"weight: expected at least one entry; got shape \(2, 0, 3\)"),
    (torch.ones(0, 5), ValueError, r"weight: expected at least one entry; got shape \(0, 5\)"),
    (np.ones((2, 2), np.int64), TypeError, r"weight: expected dtype float16, .*; got int64"),
    (np.ones((2, 2), np.complex64), TypeError, r"weight: expected dtype .*; got complex64"),
    (np.ones((2, 2), bool), TypeError, r"weight: expected dtype .*; got bool"),
    (np.ones((2, 2), np.longdouble), TypeError, r"weight: expected dtype .*; got "),
    (np.ones((2, 2), object), TypeError, r"weight: expected dtype .*; got object"),
    (np.ones((2, 2), ">f4"), TypeError, r"weight: expected dtype .*; got >f4"),
    (torch.ones(2, 2, dtype=torch.int8), TypeError, r"weight: expected dtype .*; got int8"),
    (torch.ones(2, 2, dtype=torch.cfloat), TypeError, r"weight: expected dtype .*; got complex64"),
    (torch.ones(2, 2, dtype=torch.bool), TypeError, r"weight: expected dtype .*; got bool"),
    (torch.ones(2, 2, dtype=torch.float8_e4m3fn), TypeError, r"weight: expected dtype .*float8"),
    (torch.ones(2, 2, device="meta"), TypeError, r"weight: expected .*on device 'meta'"),
    (torch.ones(2, 2).to_sparse(), TypeError, r"weight: expected .*sparse"),
    (np.full((2, 2), 1e39), ValueError, r"weight: expected finite .* fit float32; got 4 "),
]


@pytest.mark.parametrize(("weight", "error", "message"), BAD_WEIGHTS)
def test_bad_weights(weight: Any, error: type[Exception], message: str) -> None:
    """An array that cannot be sparsified, taken or refused without saying which and why."""
    with pytest.raises(error, match=message):
        sparsify(weight, sparsity=0.5)


@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("group", GROUPS)
def test_overflow_of_rescaling_is_refused(dtype: str, group: str) -> None:
    """A / p past the dtype's largest, returned as infinity."""
    large = {"float16": 6e4, "bfloat16": 3e38, "float32": 3e38}[dtype]
    A = case(np.full((20, 50), large), dtype).array
    with pytest.raises(ValueError, match=rf"rescale: .*overflow {dtype}"):
        sparsify(A, sparsity=0.9, law="l1", rescale=True, group=group)
    kept = sparsify(A, sparsity=0.9, law="l1", group=group)
    assert np.isfinite(as_numpy(kept.weight)).all()


@pytest.mark.parametrize("law", ["threshold", "l1"])
@pytest.mark.parametrize("scale", [1e-40, 1e-46, 1e-300])
def test_entries_under_the_range_of_scores_are_refused(scale: float, law: str) -> None:
    """float64 weights that are all 0 as float32, kept by index or not at all."""
    A = np.random.default_rng(0).standard_normal((4, 8)) * scale
    with pytest.raises(ValueError, match=r"weight: expected a largest entry of 2\^-126 or more"):
        sparsify(A, sparsity=0.75, law=law)
    A[0, 0] = 1.0
    assert sparsify(A, sparsity=0.75).nnz == 8
    with pytest.raises(ValueError, match="got 3 groups under it"):
        sparsify(A, sparsity=0.75, group="row")
    assert sparsify(np.zeros((4, 8)), sparsity=0.75).nnz == 0
    assert sparsify(A * scale, sparsity=0.0).nnz == np.count_nonzero(A * scale)


def test_a_low_rank_that_overflows_is_refused_under_every_score() -> None:
    """B = inf - inf, scored 0 on the CPU where the oracle has NaN; but nothing is said of A = 0."""
    A = np.ones((1, 4), np.float32)
    left = np.full((1, 2), 1e30, np.float32)
    right = np.array([[1e30] * 4, [-1e30] * 4], np.float32)
    for score in ("principal", "aligned", "mixture"):
        arguments = {"score": score, "factors": (left, right), "mixture": (1.0, 1.0)}
        with pytest.raises(ValueError, match="got 4 that are NaN or infinite"):
            sparsify(A, sparsity=0.5, **arguments)
        assert sparsify(0 * A, sparsity=0.5, **arguments).nnz == 0


def test_float64_has_room_for_rescaled_groups() -> None:
    """N of M in float64 refused for values that fit it and not float32."""
    A = np.full((1, 8), 3e38)
    found = sparsify(A, pattern="2:4", law="l1", rescale=True)
    np.testing.assert_allclose(found.weight[found.weight != 0], 6e38)


@pytest.mark.parametrize("kind", [float, np.float32, np.float64])
def test_numbers_of_numpy_count_as_numbers(kind: Any) -> None:
    """A sparsity that contradicts the pattern let pass, a parameter refused, for its type."""
    with pytest.raises(ValueError, match="sparsity: pattern '2:4'"):
        sparsify(A2, sparsity=kind(0.9), pattern="2:4")
    A = normal_matrix(20, 50)
    assert sparsify(A, sparsity=0.5, law="hybrid", law_parameter=kind(0.5)).nnz > 0


def test_hybrid_without_its_first_term_is_l2() -> None:
    """A budget missed by all but one of 10,000 entries, where an outlier of 1e30 leaves the first
    term no room."""
    A = np.random.default_rng(1).uniform(1.0, 2.0, (100, 1000)).astype(np.float32)
    A[0, 0] = 1e30
    expected = sparsify(A, sparsity=0.9, law="l2")
    found = sparsify(A, sparsity=0.9, law="hybrid", law_parameter=0.0)
    np.testing.assert_array_equal(found.weight, expected.weight)
    assert found.nnz > 9_000
