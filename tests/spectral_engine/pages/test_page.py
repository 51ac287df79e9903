"""The page of a report: whole, escaped, alone; in a browser it opens, sorts and fits a phone."""

import html
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import spectral_engine as se
from spectral_engine.pages.html import NOTEBOOK_ROWS
from tests.support.browser import CHROMIUM, DRIVER, browser

HOSTILE = [
    "<script>document.title='taken'</script>",
    '"><img src=x onerror="document.title=1">',
    "{{ 7 * 7 }}&amp;'`</style></title>",
    "\x1b[2J\ud800 surrogate".encode("utf-8", "replace").decode(),
]


class Reader(HTMLParser):
    """Text, tags and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.names: list[str] = []
        self.addresses: list[str] = []
        self._name: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.addresses += [values[key] for key in ("src", "href", "action") if key in values]
        if tag == "th" and values.get("scope") == "row":
            self._name = []

    def handle_data(self, data):
        if self._name is not None:
            self._name.append(data)

    def handle_endtag(self, tag):
        if tag == "th" and self._name is not None:
            self.names.append("".join(self._name))
            self._name = None


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A checkpoint whose names attack the page."""
    path = tmp_path_factory.mktemp("hostile") / "in.safetensors"
    torch.manual_seed(0)
    save_file({name: torch.randn(12, 10) for name in HOSTILE}, path)
    return path


def test_names_of_a_file_are_only_text(hostile, tmp_path):
    """Catches a tensor's name that becomes a tag, an attribute or a template, in any report."""
    pruned = tmp_path / "out.safetensors"
    reports = {
        "prune": se.prune_file(hostile, pruned, "magnitude", 0.5, measure=True),
        "spectra": se.spectra(hostile, progress=False),
        "compare": se.compare(hostile, pruned, progress=False),
        "compress": se.compress_file(pruned, tmp_path / "small.safetensors", progress=False),
        "left": se.spectra(hostile, targets="{*", progress=False),
    }
    for name, report in reports.items():
        path = report.to_html(tmp_path / f"{name}.html")
        page = path.read_text()
        for text in (page, report._repr_html_()):
            found = Reader(text)
            assert "img" not in found.tags
            assert found.tags.count("script") == (text is page)
            # To a place in the page itself, at most.
            assert all(address.startswith("#curves-") for address in found.addresses)
            assert "49" not in re.sub(r"[\d.]{3,}", "", "".join(found.names))
            if name in ("prune", "spectra", "compare"):
                assert set(HOSTILE) <= set(found.names)


def test_a_page_has_what_the_report_has(tmp_path):
    """Catches a warning, a reason, a layer or a budget that the page leaves out, and warnings that
    come after the table."""
    model = nn.Sequential(nn.Linear(16, 12), nn.Embedding(9, 5), nn.Linear(12, 8))
    report = se.prune(model, "magnitude", 0.75, measure=True, ignore=["2", "gone.*"])
    page = report.to_html(tmp_path / "r.html").read_text()
    assert page.index("gone.*") < page.index("0.<wbr>weight")
    for words in ("an embedding", "ignored by", "0.7500", repr(report.recipes[0]), "sigma 12"):
        assert words in page
    row = report.layers[0]
    assert "not measured" not in page
    again = se.prune(model, "magnitude", 0.8).to_html(tmp_path / "again.html").read_text()
    assert "not measured: measure=True, or --measure" in again
    assert f"{row.spectral:.4f}" in page
    assert f"{row.before[0]:.4g}" in page
    assert f"{row.after[0]:.4g}" in page
    assert len(row.before) == len(row.after) == 12
    assert json.loads(json.dumps(report.to_dict()))["layers"][0]["before"] == list(row.before)


def test_each_of_several_recipes_is_named(tmp_path):
    """Catches a report of several recipes that says how many and not which, or not whose a layer
    is."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    first = se.Recipe(budget=se.Uniform(0.5), select=se.Select("0"))
    recipes = [first, se.Recipe(se.Aligned(), budget=se.Uniform(0.25))]
    report = se.prune(model, recipes)
    page = report.to_html(tmp_path / "r.html").read_text()
    for index, recipe in enumerate(recipes, 1):
        said = f"recipe {index}: {recipe!r}"
        assert html.escape(said).replace("&#x27;", "&#39;") in page
        assert said in " ".join(str(report).split())
    columns = [cell.text for row in report.sheet().rows for cell in row.cells[1:2]]
    assert columns == ["1", "2"]


def test_layers_of_a_file_come_in_natural_order(tmp_path):
    """Catches 10 before 2, as in the header of a file."""
    names = [f"layers.{index}.weight" for index in (0, 1, 10, 11, 2)]
    save_file({name: torch.eye(40) for name in names}, tmp_path / "in.safetensors")
    wanted = sorted(names, key=lambda name: int(name.split(".")[1]))
    source, pruned = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    report = se.prune_file(source, pruned, "magnitude", 0.9)
    assert [row.name for row in report.layers] == wanted
    assert [row.name for row in se.spectra(source, progress=False)] == wanted
    assert [row.name for row in se.compare(source, pruned, progress=False).layers] == wanted
    small = se.compress_file(pruned, tmp_path / "small.safetensors", progress=False)
    assert [row.name for row in small.weights] == wanted
    assert Reader(report._repr_html_()).names[:-1] == wanted


def test_only_pages_of_ours_are_written_over(tmp_path):
    """Catches a file of another kind lost to a report, and a page that cannot be written anew."""
    report = se.compare(nn.Linear(3, 2), nn.Linear(3, 2), progress=False)
    path = report.to_html(tmp_path / "r.html")
    assert report.to_html(str(path)) == path
    mine = tmp_path / "index.html"
    mine.write_text("<p>mine</p>")
    with pytest.raises(FileExistsError, match=r"index\.html exists already, and is no report"):
        report.to_html(mine)
    assert mine.read_text() == "<p>mine</p>"
    report.to_html(mine, force=True)
    with pytest.raises(ValueError, match=r"path: expected a name that ends in \.html; got"):
        report.to_html(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="expected a folder to write to"):
        report.to_html(tmp_path / "none" / "r.html")


def test_a_notebook_shows_the_first_rows(tmp_path):
    """Catches a cell of hundreds of rows, and rows left out without a word."""
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(NOTEBOOK_ROWS + 5)))
    shown = se.spectra(model, progress=False)._repr_html_()
    assert len(Reader(shown).names) == NOTEBOOK_ROWS
    assert "and 5 more" in shown
    assert "<script" not in shown


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's chromium, chromium-driver")
def test_in_a_browser(hostile, tmp_path):
    """Catches a page with errors, one that runs what a name says, columns that do not sort or
    sort 10 before 9, and a page that is wider than a phone."""
    report = se.prune_file(hostile, tmp_path / "o.safetensors", "magnitude", 0.5, measure=True)
    attacked = report.to_html(tmp_path / "attacked.html")
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(8, 3 + index) for index in range(12)))
    report = se.prune(model, se.Recipe(budget=se.Global(0.6)), measure=True)
    path = report.to_html(tmp_path / "report.html")
    names = "return [...document.querySelectorAll('th[scope=row]')].map(x => x.textContent)"
    with browser() as window:
        window.open(attacked)
        assert window.run("return document.title") == "4 weights pruned, 50.0% zeros"
        assert set(HOSTILE) <= set(window.run(names))
        assert window.said() == []

        window.open(path)
        given = [row.name for row in report.layers]
        assert [name for name in window.run(names) if name.endswith("weight")] == given
        spectral = 1 + 1 + ["shape", "asked", "sparsity", "kept", "spectral"].index("spectral")
        worst = sorted(report.layers, key=lambda row: -(row.spectral or 0.0))
        window.click(f"thead th:nth-child({spectral}) button")
        assert window.run(names)[: len(given)] == [row.name for row in worst]
        window.click(f"thead th:nth-child({spectral}) button")
        assert window.run(names)[: len(given)] == [row.name for row in worst[::-1]]
        window.click("thead th button")
        assert window.run(names)[: len(given)] == [f"{index}.weight" for index in range(12)]
        window.run(
            "const field = document.getElementById('find'); field.value = '11.';"
            "field.dispatchEvent(new Event('input'))"
        )
        assert window.run("return document.querySelectorAll('tbody tr:not([hidden]) > [scope]')"
                          ".length") == 1  # fmt: skip

        window.resize(360, 740)
        window.click("tbody tr:not([hidden]) summary")
        size = window.run("return [document.documentElement.scrollWidth, innerWidth]")
        assert size == [360, 360]
        cell = "document.querySelector('tbody tr:not([hidden]) > [scope] + td')"
        said = window.run(f"return getComputedStyle({cell}, '::before').content")
        assert said == '"shape"'
        assert window.said() == []
