"""What `progress` may be, and what comes of it."""

import io
import sys
from dataclasses import dataclass
from threading import Thread

import pytest

from spectral_engine._util.progress import check_progress, reporting


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


@pytest.mark.parametrize("progress", [None, 1, "bar", []])
def test_anything_else_is_refused_by_name(progress):
    """`progress=None` that is taken for False in one function and for True in another."""
    with pytest.raises(TypeError, match=r"progress: expected True .* got"):
        check_progress(progress)
    with pytest.raises(TypeError, match="progress: expected"), reporting(progress, "working"):
        pass
