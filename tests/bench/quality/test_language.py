"""The perplexity of pruned language models, on one of a few weights."""

import math

import pytest
import torch
from torch import nn

import spectral_engine as se
from bench import tidy
from bench.quality import language
from bench.quality.networks import language as networks

WORDS, LENGTH = 11, 8


class Tiny(nn.Module):
    """Two blocks over an embedding; logits in an object, as transformers gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 16)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.ReLU()) for _ in range(2)
        )
        self.head = nn.Linear(16, WORDS)

    def forward(self, input_ids, use_cache=True):
        hidden = self.embed(input_ids)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return type("Output", (dict,), {"logits": self.head(hidden)})()


def network() -> networks.LanguageModel:
    torch.manual_seed(0)
    data = torch.randint(0, WORDS, (9, LENGTH))
    calibration = [{"input_ids": window[None], "use_cache": False} for window in data]
    return networks.LanguageModel(Tiny().eval(), calibration, {"one": data[:2], "two": data[2:4]})


def test_perplexity_is_that_of_the_next_token():
    """Catches logits that are compared with their own token, and a mean of perplexities."""

    class Knows(nn.Module):
        def forward(self, input_ids, use_cache):
            logits = torch.zeros(1, input_ids.shape[1], WORDS)
            right = (input_ids + 1) % WORDS
            logits.scatter_(2, right[..., None], math.log(3.0 * (WORDS - 1)))
            return type("Output", (), {"logits": logits})()

    counting = torch.arange(2 * LENGTH).view(2, LENGTH) % WORDS
    assert networks.perplexity(Knows(), counting) == pytest.approx(4.0 / 3.0, rel=1e-5)


def test_windows_do_not_overlap():
    """Catches text that is measured twice, and windows of the beginning alone."""
    found = networks.windows(list(range(103)), 10, 4)
    assert found.shape == (4, 10)
    assert found[0, 0] == 0
    assert found[-1, 0] == 90
    assert len(set(found.flatten().tolist())) == 40
    assert len(networks.windows(list(range(25)), 10, 4)) == 2


def test_text_apart_is_apart():
    """Catches text that is calibrated on and measured with."""
    chosen, apart = networks.texts()
    assert len(chosen) > 10_000
    for text in apart.values():
        for line in text.splitlines()[::97]:
            if len(line) > 60:
                assert line not in chosen


def test_every_setting_has_a_recipe():
    """Catches a label that stands for no recipe anywhere, or for that of another."""
    found = {}
    for label in language.settings():
        recipes = [language.recipe_of(label, share) for share in (0.5, 0.7)]
        if recipes[0] is not None:
            end = label.removeprefix(language.start_of(label))
            found[label] = (recipes[0], language.ENDS[end](8))
            assert recipes[1] is None or recipes[1].budget.target == 0.7, label
    assert len(set(found.values())) == len(found)
    assert found["wanda + whole"][1] == se.Reconstruction(steps=0, whole=8)


def test_a_run_goes_on_where_it_was(tmp_path, monkeypatch):
    """Catches a run that measures twice, forgets what it has, or mixes two commands' figures."""
    monkeypatch.setattr(language, "load", lambda *_, **__: network())
    measured = []
    own = language.measure
    monkeypatch.setattr(language, "measure", lambda *a: measured.append(a) or own(*a))
    path = tmp_path / "language.csv"

    def run(settings, steps=4):
        language.main(
            tmp_path, settings, [0.5], ["blocks*"], LENGTH, calibration=9, held_out=2,
            steps=steps, results=path, threads=torch.get_num_threads(),
        )  # fmt: skip

    run(["wanda"])
    run(["wanda", "least-squares + blocks", "least-squares + whole"])
    assert len(measured) == 3
    _, rows = tidy.read(path)
    found = {(row.setting, row.metric): row.value for row in rows}
    assert {row.setting for row in rows} == {
        "dense",
        "wanda",
        "least-squares + blocks",
        "least-squares + whole",
    }
    assert found["wanda", "reached"] == pytest.approx(0.5, abs=0.01)
    with pytest.raises(language.typer.BadParameter, match="another command"):
        run(["wanda"], steps=5)
