"""What the last line of a notebook's cell shows, and figures that need no path."""

import io

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from matplotlib.text import Text
from torch import nn

import spectral_engine as se
from spectral_engine.spectral.plots import MOST_PANELS, MOST_ROWS, kinds_of


def many() -> nn.Module:
    """A network of 64 weights of three kinds."""
    block = nn.ModuleDict({"q": nn.Linear(4, 4), "up": nn.Linear(4, 6), "down": nn.Linear(6, 4)})
    layers = [nn.ModuleDict({name: nn.Linear(*reversed(part.weight.shape))
                             for name, part in block.items()}) for _ in range(21)]  # fmt: skip
    return nn.ModuleDict({"head": nn.Linear(4, 3), "layers": nn.ModuleList(layers)})


def test_trackers_and_pruners_say_what_they_are():
    """Catches the address of an object, a record lost on the way, and a collapse that is not
    said first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    tracker = se.SpectrumTracker(model, every=5, rank=3)
    assert repr(tracker) == "SpectrumTracker(2 weights, rank 3, every 5 steps; 0 records, step 0)"
    assert "0.weight" in str(tracker)
    tracker.start()
    first = tracker.singular_values("0.weight")[0]
    with torch.no_grad():
        model[1].weight.zero_()
    for _ in range(10):
        tracker.step()
    shown = tracker._repr_html_()
    assert f"{first[0]:.4g}" in shown
    assert shown.index("spectrum collapsed") < shown.index("<table>")
    assert "3 records" in str(tracker)

    pruner = se.Pruner(nn.Sequential(nn.Linear(9, 9)), se.Iterative(0.9, rounds=2, every=1))
    assert repr(pruner).startswith("Pruner(Recipe(Magnitude()")
    assert "0 of 2 rounds" in repr(pruner)
    for _ in range(3):
        pruner.step()
    with pytest.warns(se.SpectrumCollapse):
        pruner.finish()
    shown = pruner._repr_html_()
    assert "2 of 2" in shown
    assert shown.index("does not recover") < shown.index("<table>")
    assert f"{pruner.rounds[1].sparsity:.4f}" in shown
    assert len(repr(pruner)) < 120


def test_values_show_their_parts():
    """Catches a recipe shown without a part that matters, or with markup out of a pattern."""
    select = se.Select("<b>*</b>")
    recipe = se.Recipe(budget=se.ERK(0.9, floor=0.02), refit=se.SpectralRefit(), select=select)
    shown = recipe._repr_html_()
    for words in ("Magnitude()", "ERK(0.9, floor=0.02)", "SpectralRefit()", "&lt;b&gt;"):
        assert words in shown
    assert "<b>*" not in shown
    assert "calibrated" not in shown
    spectrum = se.spectrum(np.diag([3.0, 2.0, 1.0]), rank=2)
    assert repr(spectrum) == "Spectrum(3x3, rank 2, S 3 to 2)"
    out = se.sparsify(torch.ones(4, 6), "magnitude", 0.5)
    assert repr(out) == "Sparsified(4x6, sparsity 0.5000, nnz 12)"


def test_figures_without_a_path():
    """Catches a figure that a notebook cannot show, and one as high as there are weights."""
    model = many()
    tracker = se.SpectrumTracker(model, rank=2)
    tracker.start()
    tracker.step()
    tracker.record()
    figures = (se.spectra(model, progress=False).plot(), tracker.plot())
    picture = imread(io.BytesIO(figures[0]._repr_png_()))
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 20
    for figure in figures:
        assert 3.0 < figure.get_size_inches()[1] < 13.0
        titles = [text.get_text() for text in figure.findobj(Text)]
        assert "layers.*.up.weight x21" in titles


def test_kinds_are_told_by_the_numbers_in_names():
    """Catches a weight that is lost or counted twice, and a name cut inside a word."""
    names = ["a1.weight", *(f"h.{index}.w2.x" for index in range(MOST_ROWS)), "7.b"]
    found = kinds_of(names, MOST_PANELS)
    assert list(found) == ["a1.weight", "h.*.w2.x", "*.b"]
    assert sorted(place for places in found.values() for place in places) == [*range(len(names))]
    assert list(kinds_of(names[:3], 3)) == names[:3]
