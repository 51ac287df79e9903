"""Reports on a terminal and in a log: names whole, no codes, the same figures as the page."""

import io
import re

import pytest
import torch
from rich.console import Console
from torch import nn

import spectral_engine as se
from spectral_engine._util.text import natural
from spectral_engine.pages.curves import FLOOR, HEIGHT, curves_of
from spectral_engine.pages.terminal import Name

LONG = "model.encoder.layers.11.self_attention.query_projection.weight"


def printed(report: object, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(report)
    return console.file.getvalue()


def test_natural_order():
    """Catches layer 10 before layer 2, and digits compared with letters, which raises."""
    names = ["b.10", "b.2", "a", "b.2.x", "b", "b.x", "10", "9"]
    assert sorted(names, key=natural) == ["9", "10", "a", "b", "b.2", "b.2.x", "b.10", "b.x"]


@pytest.mark.parametrize("width", [12, 20, 33, 61, 62, 80])
def test_names_break_between_words(width):
    """Catches a name broken inside a word that would have fitted, a letter lost, a line too
    long."""
    lines = list(Name(LONG).lines(width))
    assert "".join(lines) == LONG
    assert all(len(line) <= width for line in lines)
    assert all(line[-1] in "._" for line in lines[:-1])
    assert len(lines) == 1 or width < len(LONG)


def test_a_word_longer_than_the_line_is_broken_where_it_must():
    """Catches a line that never ends, and one that is cut."""
    assert list(Name("a" * 25).lines(10)) == ["a" * 10, "a" * 10, "a" * 5]


def test_a_narrow_terminal_keeps_names_and_numbers():
    """Catches numbers cut to an ellipsis, and a row that is wider than the terminal."""
    model = nn.ModuleDict({"self_attention_query_projection": nn.Linear(24, 40)})
    spectra = se.spectra(model, progress=False)
    for width in (72, 100, 160):
        text = printed(spectra, width)
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width
        assert "40x24" in text
        assert f"{spectra.layers[0].statistics.spectral:.4g}" in text
    heads = [
        next(line for line in text.splitlines() if "shape" in line)
        for text in (printed(spectra, 72), str(spectra))
    ]
    assert ["KS" in line for line in heads] == [False, True]
    short = se.spectra(nn.ModuleDict({"fc": nn.Linear(24, 40)}), progress=False)
    assert "fc.weight" in printed(short, 72)


def test_printing_has_no_codes(monkeypatch, capsys):
    """Catches codes of a terminal in a file because FORCE_COLOR is set, and the empty box that a
    notebook shows for each `str` of a report."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    model = nn.Sequential(nn.Linear(8, 6))
    report = se.prune(model, "magnitude", 0.5, measure=True)
    for one in (report, se.spectra(model, progress=False), se.compare(model, model)):
        print(one)
        out, err = capsys.readouterr()
        assert "\x1b" not in out + err
        assert "0.weight" in out


def test_reprs_are_one_short_line():
    """Catches thousands of characters of nested rows, and the address of an object."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    shown = [
        repr(se.spectra(model, progress=False)),
        repr(se.compare(model, model)),
        repr(se.prune(model, "magnitude", 0.9, measure=True)),
        repr(se.compress(model)),
    ]
    for text in shown:
        assert len(text) < 160
        assert re.match(r"\w+\(.*\)$", text)
        assert "weight" in text
        assert " at 0x" not in text


def test_curves_of_hand():
    """Catches a scale that is not logarithmic, an order that is turned, and zeros drawn."""
    found = curves_of([100.0, 10.0, 1.0], [10.0, 0.0, float("nan")])
    assert found is not None
    assert (found.top, found.bottom, found.last) == (100.0, 1.0, 3)
    assert found.before == f"M0 0L60 {HEIGHT / 2:g}L120 {HEIGHT}"
    assert found.after == f"M0 {HEIGHT / 2:g}h1"
    assert curves_of([], []) is None
    assert curves_of([0.0], [float("nan")]) is None
    low = curves_of([1.0, FLOOR / 10], [])
    assert low is not None
    assert low.before.count("L") == 0


def test_singular_values_of_blocks_come_from_all_of_them():
    """Catches the first block's values taken for the leading ones of a grouped convolution."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(6, 9, 3, groups=3, bias=False))
    with torch.no_grad():
        model[0].weight[-3:].mul_(100.0)

    def exact() -> list[float]:
        blocks = model[0].weight.detach().split(3)
        values = torch.cat([torch.linalg.svdvals(block.flatten(1)) for block in blocks])
        return values.sort(descending=True).values.tolist()

    dense = exact()
    report = se.prune(model, "magnitude", 0.2, measure=True)
    assert report.layers[0].before == pytest.approx(dense, rel=1e-5)
    assert report.layers[0].after == pytest.approx(exact(), rel=1e-5)
    assert report.layers[0].after != report.layers[0].before
