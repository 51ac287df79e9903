"""The form of results: rows that come back, tables that can be made again, small figures."""

import io
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from bench import figures, tidy
from bench.paper.reporting.numbers import interval_of, interval_rows
from bench.paper.reporting.statistics import Interval, mean_interval, spearman_interval
from bench.tables import Table
from bench.tidy import Row

COLUMNS = "variant,seed,setting,sparsity,metric,value"
LINES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=12)
ROWS = st.lists(
    st.builds(
        Row,
        LINES,
        st.none() | st.integers(0, 99),
        LINES,
        st.none() | st.sampled_from((0.05, 0.5, 0.995)),
        LINES,
        st.integers(-(10**9), 10**9) | st.floats(width=32),
    ),
    max_size=8,
)


@given(ROWS, LINES)
def test_rows_come_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], said: str
) -> None:
    """Catches names with commas, quotes or signs cut up, blanks that become zeros, counts that
    become fractions, and a value that is rounded anew each time it is written.
    """
    path = tmp_path_factory.mktemp("tidy") / "rows.csv"
    tidy.write(path, rows, {"about": said})
    head, found = tidy.read(path)
    assert head == {"about": said}
    assert str(found) == str(tidy.as_written(rows))  # as text, in which a NaN is equal to itself
    for one, given_ in zip(found, rows, strict=True):
        assert one[:5] == given_[:5]
        assert type(one.value) is type(given_.value) or one.value == int(one.value)
        if math.isfinite(given_.value):
            assert one.value == pytest.approx(given_.value, rel=5.1e-5)
    tidy.write(path, found, {"about": said})
    assert str(tidy.read(path)[1]) == str(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected the columns variant, seed"),
        ("seed,variant\n", r"got \['seed', 'variant'\]"),
        (
            "# a: b\nvariant,seed,setting,sparsity,metric,value\nx,0,,,test\n",
            "line 3: expected six",
        ),
        ("variant,seed,setting,sparsity,metric,value\nx,0.5,,,test,1\n", "line 2: expected six"),
    ],
)
def test_a_file_of_another_form_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    """Catches a bare IndexError, and columns in another order read as if in this one."""
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=expected):
        tidy.read(path)


@pytest.mark.parametrize("head", [{"a": "two\nlines"}, {"a: b": "c"}, {"": "c"}])
def test_a_head_that_would_not_come_back_is_refused(head: dict[str, str], tmp_path: Path) -> None:
    """Catches a line of the head that is read as another entry, or as a row."""
    with pytest.raises(ValueError, match="head: expected a name"):
        tidy.write(tmp_path / "x.csv", [], head)
    assert not list(tmp_path.iterdir())


def test_over_seeds_takes_the_mean_of_each_number() -> None:
    """Catches settings or sparsities pooled, and a mean that depends on the order."""
    rows = [
        Row("", seed, setting, sparsity, "test", seed + sparsity + len(setting))
        for seed in (0, 1, 2)
        for setting in ("a", "bb")
        for sparsity in (0.25, 0.5)
    ]
    assert tidy.over_seeds(rows) == [
        Row("", None, setting, sparsity, "test", 1 + sparsity + len(setting))
        for setting in ("a", "bb")
        for sparsity in (0.25, 0.5)
    ]


@pytest.mark.parametrize(
    "found",
    [
        mean_interval([0.8961, 0.8953, 0.8964]),
        mean_interval([0.5]),
        mean_interval([]),
        spearman_interval([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 3.0, 2.0, 5.0, 4.0]),
        Interval(-0.5, -0.75, -0.25, 5),
    ],
)
def test_intervals_are_shown_alike_before_and_after(found: Interval) -> None:
    """Catches an interval about the mean that comes back lopsided, or one that is lost."""
    rows = tidy.as_written(interval_rows("v", "s", 0.5, "rho", found))
    (record,) = tidy.records(rows)
    assert interval_of(record, "rho").show(digits=2) == found.show(digits=2)


def test_a_figure_is_small_and_keeps_its_colours(tmp_path: Path) -> None:
    """Catches a palette that turns one line's colour into another's, and a cut in size."""
    figure = Figure(figsize=(4, 3))
    axes = figure.subplots()
    colours = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7")
    for place, colour in enumerate(colours):
        axes.axhline(place, color=colour, linewidth=4)
    figures.save(figure, tmp_path / "x.png", dpi=90)
    plain = io.BytesIO()
    figure.savefig(plain, format="png", dpi=90)
    assert (tmp_path / "x.png").stat().st_size < len(plain.getvalue())
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (360, 270)
        seen = {pixel for _, pixel in image.convert("RGB").getcolors(1 << 20)}
    for colour in colours:
        wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        near = min(max(abs(a - b) for a, b in zip(pixel, wanted, strict=True)) for pixel in seen)
        assert near <= 8, colour


def test_tables_as_markdown() -> None:
    """Catches a row or a rule that GitHub does not take for a table."""
    table = Table("title", ("a", "b"), [("x", "1"), ("y", "2")])
    assert table.markdown() == "### title\n\n| a | b |\n| --- | ---: |\n| x | 1 |\n| y | 2 |\n"
