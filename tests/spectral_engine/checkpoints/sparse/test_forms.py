"""The forms of a sparse matrix: exact, of the bytes that were planned, and checked when read."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_kernels.product import PATTERNS

from spectral_engine.checkpoints.sparse import forms
from tests.support.sparse_weights import DTYPES, equal_bits, pruned, weights


@settings(deadline=None, max_examples=300)
@given(weights())
def test_every_form_gives_every_bit_back(weight):
    """Catches a bit, a value or an offset in the wrong place, -0 or NaN lost, a ragged last byte, a
    gap of 255, an empty row, and parts that take other bytes than were planned."""
    shape, count = tuple(weight.shape), int((weight.view(-1) != 0).sum())
    plans = [forms.plan(weight), forms._bitmask_plan(shape, count)]
    for plan in plans:
        if plan.form == "dense":
            continue
        parts = forms.encode(weight, plan)
        if plan is plans[0]:
            assert {name: tuple(part.shape) for name, part in parts.items()} == dict(plan.sizes)
            assert sum(part.nbytes for part in parts.values()) == forms.bytes_of(plan, weight.dtype)
            assert forms.bytes_of(plan, weight.dtype) < weight.nbytes
        assert equal_bits(forms.decode(parts), weight)


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("full", [True, False])
def test_patterns_are_found_and_kept(n, m, full):
    """Catches a pattern not seen, groups that are not full, and a table of the wrong direction."""
    order = torch.rand(64, 240 // m, m, generator=torch.Generator().manual_seed(n * m)).argsort(2)
    weight = torch.where(order < n, torch.randn(order.shape).abs() + 1, 0.0).reshape(64, 240)
    if not full:
        weight[3, :16] = 0.0
    plan = forms.plan(weight)
    assert (plan.form, plan.pattern) == (forms.POSITIONS, (n, m))
    assert equal_bits(forms.decode(forms.encode(weight, plan)), weight)
    # The step between patterns: one entry more in one group, and it is none.
    last = weight[-1, -m:]
    last[:] = 1.0
    assert forms.plan(weight).pattern != (n, m)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("sparsity", "form"), [(0.01, "dense"), (0.5, "bitmask"), (0.9, "bitmask"), (0.97, "deltas")]
)
def test_the_smallest_form_is_taken(sparsity, form, dtype):
    """Catches a form that is chosen though another one is smaller."""
    assert forms.plan(pruned(96, 1000, sparsity=sparsity, dtype=dtype)).form == form


@pytest.mark.parametrize(
    ("dtype", "sparsity", "most"),
    [
        (torch.bfloat16, 0.5, 0.565), (torch.bfloat16, 0.7, 0.365), (torch.bfloat16, 0.9, 0.165),
        (torch.float32, 0.5, 0.534), (torch.float32, 0.7, 0.334), (torch.float32, 0.9, 0.134),
    ],
)  # fmt: skip
def test_sizes(dtype, sparsity, most):
    """Catches a format that takes more than a bit an entry and an offset a row."""
    weight = pruned(256, 1024, sparsity=sparsity, dtype=dtype)
    assert forms.bytes_of(forms.plan(weight), dtype) <= most * weight.nbytes


def _parts(form):
    if form == forms.POSITIONS:
        weight = torch.ones(6, 16)
        weight[:, ::2] = 0.0
    else:
        weight = pruned(6, 700, sparsity=0.5 if form == forms.BITMASK else 0.99)
    plan = forms.plan(weight)
    assert plan.form == form
    return forms.encode(weight, plan)


def _with(parts, name, change):
    return {**parts, name: change(parts[name].clone())}


def _put(index, value):
    def change(part):
        part.view(-1)[index] = value
        return part

    return change


@pytest.mark.parametrize(
    ("form", "part", "change", "said"),
    [
        ("bitmask", "compressed", lambda v: v[:-1], "do not agree|row"),
        ("bitmask", "bitmask", lambda b: b ^ 1, "do not agree|row"),
        ("bitmask", "bitmask", lambda b: b[:, 1:], "bitmask: expected"),
        ("bitmask", "bitmask", _put(-1, 255), "row"),
        ("bitmask", "row_offsets", _put(1, -5), "row"),
        ("bitmask", "row_offsets", lambda o: o.double(), "row_offsets: expected"),
        ("bitmask", "shape", lambda s: s.flip(0), "bitmask: expected"),
        ("bitmask", "shape", lambda s: s * 0, "shape: expected"),
        ("bitmask", "shape", lambda s: s * 2**40, "shape: expected"),
        ("bitmask", "compressed", lambda v: v.int(), "compressed: expected"),
        ("bitmask", "compressed", lambda v: v[None], "compressed: expected"),
        ("deltas", "deltas", lambda d: d[:-1], "deltas: expected"),
        ("deltas", "shape", lambda s: s * 1000, "deltas: expected"),
        ("deltas", "deltas", _put(0, 255), "deltas: expected"),
        ("deltas", "deltas", lambda d: torch.full_like(d, 254), "deltas: expected"),
        ("deltas", "compressed", lambda v: v[1:], "deltas: expected"),
        ("positions", "positions", lambda p: p * 0, "positions: expected"),
        ("positions", "pattern", lambda p: p.flip(0), "pattern: expected"),
        ("positions", "pattern", lambda p: p * 3, "pattern: expected"),
        ("positions", "compressed", lambda v: v[1:], "compressed: expected"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(form, part, change, said):
    """Catches values, bits, offsets or shapes that belong to another matrix read as this one, and
    reads past the end of what is there."""
    with pytest.raises(ValueError, match=said):
        forms.decode(_with(_parts(form), part, change))


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(list(forms.PARTS)), st.data())
def test_parts_at_random_never_crash(form, data):
    """Catches a part that makes the reader index past an array, or fail with another error."""
    parts = _parts(form)
    name = data.draw(st.sampled_from(sorted(set(parts) - {forms.VALUES})))
    part = parts[name].clone().numpy()
    raw = part.view(np.uint8).reshape(-1)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, raw.size - 1))] = data.draw(st.integers(0, 255))
    try:
        weight = forms.decode({**parts, name: torch.from_numpy(part)})
    except ValueError:
        return
    assert weight.dtype == torch.float32
