"""What `progress` may be, and what comes of it."""

import io
import sys
import types
from dataclasses import dataclass
from threading import Thread

import pytest
import torch
from torch import nn

import spectral_engine as se
from spectral_engine._util.progress import check_progress, on_the_way, reporting


@dataclass(frozen=True)
class Named:
    """A row as the public functions report it."""

    name: str


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def run(progress, stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with reporting(progress, "pruning [bold]", 2) as report:
        report(Named("fc1[/red]\x1b[2J"))
        report(Named("fc2"))
    return stream.getvalue()


def test_a_bar_on_a_terminal(monkeypatch):
    """No bar where one was asked for; a name that is read as markup or steers the terminal."""
    shown = run(True, Terminal(), monkeypatch)
    assert "pruning [bold]" in shown
    assert "2/2" in shown
    assert "\x1b[2J" not in shown


@pytest.mark.parametrize(
    ("progress", "stream"), [(True, io.StringIO()), (False, Terminal()), (False, io.StringIO())]
)
def test_nothing_elsewhere(progress, stream, monkeypatch):
    """A bar in a log file, or one that was not wanted."""
    assert run(progress, stream, monkeypatch) == ""


def test_a_callable_gets_each_row_and_no_bar_is_shown(monkeypatch):
    """Rows lost or in another order; a bar beside the caller's own."""
    rows = []
    assert run(rows.append, Terminal(), monkeypatch) == ""
    assert [row.name for row in rows] == ["fc1[/red]\x1b[2J", "fc2"]


def test_threads_call_one_at_a_time():
    """Two threads inside the caller's function at once, for which no caller is prepared."""
    inside, most = 0, 0

    def count(row):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        for _ in range(1000):
            pass
        inside -= 1

    with reporting(count, "working", 400) as report:
        threads = [Thread(target=lambda: [report(i) for i in range(100)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == 1


def test_an_error_of_the_callable_ends_the_work():
    """An error in the caller's function that is swallowed."""

    def fail(row):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), reporting(fail, "working") as report:
        report(1)


def test_the_logger_is_told_whatever_the_bar_does(caplog):
    """A library that cannot be followed in a log, one that prints where no logging is set up, and
    a name that breaks a log's lines."""
    with caplog.at_level("DEBUG", "spectral_engine"):
        run_quietly(False)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said[:2] == [("DEBUG", "working: fc1?x"), ("DEBUG", "working: fc2")]
    assert said[2][0] == "INFO"
    assert said[2][1].startswith("working: 2 in ")


def run_quietly(progress):
    with reporting(progress, "working", 2) as report:
        report(Named("fc1\nx"))
        report(Named("fc2"))


def test_nothing_is_said_where_no_logging_is_set_up(capfd):
    """The lines of logging's last resort on stderr."""
    run_quietly(True)
    assert capfd.readouterr() == ("", "")


def test_the_bar_says_memory_and_what_is_on_the_way(monkeypatch):
    """A bar that stands still through a calibration, and one without the memory."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    on_the_way("nobody is told")
    with reporting(True, "pruning", 2) as report:
        on_the_way("batch [3]")
        report("fc1")
    on_the_way("nobody is told")
    assert "GiB" in stream.getvalue()
    assert "nobody" not in stream.getvalue()


def test_a_notebook_has_a_bar_of_its_own(monkeypatch):
    """No bar in a notebook, whose stderr is no terminal, and one that is printed anew each time."""
    shown = []

    class Place:
        def update(self, data, raw):
            shown.append(data["text/plain"])

    def display(data, raw, display_id):
        shown.append(data["text/plain"])
        return Place()

    library = types.ModuleType("IPython.display")
    library.display = display
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", library)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    with reporting(True, "spectra", 2) as report:
        report(Named("fc1"))
        report(Named("fc2"))
    assert shown[0] == "spectra"
    assert shown[-1].startswith("spectra [####################] 2/2")
    assert shown[-1].endswith("fc2")
    shown.clear()
    with reporting(False, "spectra", 1) as report:
        report(Named("fc1"))
    assert shown == []


def test_every_long_function_takes_progress(tmp_path):
    """A function that takes long and cannot be followed, or calls back with other rows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32))
    weights = ["0.weight", "2.weight"]
    rows = {}
    seen = rows.setdefault("calibrate", [])
    inputs = se.calibrate(model, [torch.randn(80, 64) for _ in range(3)], progress=seen.append)
    calls = {
        "prune": lambda see: se.prune(model, "wanda", 0.9, calibration=inputs, progress=see),
        "spectra": lambda see: se.spectra(model, progress=see),
        "compare": lambda see: se.compare(model, model, progress=see),
    }
    for name, call in calls.items():
        call(rows.setdefault(name, []).append)
    torch.save(model.state_dict(), tmp_path / "dense.pt")
    small, dense = tmp_path / "small.safetensors", tmp_path / "again.safetensors"
    se.compress_file(tmp_path / "dense.pt", small, progress=rows.setdefault("file", []).append)
    se.decompress_file(small, dense, progress=rows.setdefault("dense", []).append)
    se.compress(model, progress=rows.setdefault("compress", []).append)
    se.decompress(model, progress=rows.setdefault("decompress", []).append)
    for name in ("prune", "spectra", "compare", "file", "compress"):
        assert sorted(row.name for row in rows[name]) == weights, name
    assert rows["calibrate"] == ["batch 1", "batch 2", "batch 3"]
    assert set(rows["dense"]) == {*model.state_dict()}
    assert rows["decompress"] == ["0", "2"]
    for wrong in (
        se.compress,
        se.decompress,
        lambda m, progress: se.calibrate(m, [], progress=progress),
    ):
        with pytest.raises(TypeError, match="progress: expected True"):
            wrong(model, progress=None)


@pytest.mark.parametrize("progress", [None, 1, "bar", []])
def test_anything_else_is_refused_by_name(progress):
    """`progress=None` that is taken for False in one function and for True in another."""
    with pytest.raises(TypeError, match=r"progress: expected True .* got"):
        check_progress(progress)
    with pytest.raises(TypeError, match="progress: expected"), reporting(progress, "working"):
        pass
