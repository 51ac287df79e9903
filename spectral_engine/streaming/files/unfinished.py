"""What a long run has done so far, durable beside its target, from which another run goes on.

    .HASH.unfinished/
        fingerprint.json         of the inputs, the recipe, the calibration and the versions
        state.json               which steps are done, and what a report says of them
        step-0003.safetensors    the tensors that step 3 has changed, under the files' names
        outputs/                 what the steps gave, from which the next ones start
        draft/                   without calibration: the target as far as it is written

A step counts once state.json says so, which is renamed into place after all else of the step is on
the disk: whatever kills a run, at most the step that it was at is done again. Of processes that
share their work the first keeps this folder, and all must see it.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from spectral_engine.checkpoints.atomic import new_folder, replacing_file, sync
from spectral_engine.checkpoints.leftovers import held_alone, remove, unfinished
from spectral_engine.distributed.groups import is_first, sharing_group
from spectral_engine.distributed.owners import errors_of_all, gathered_objects

Resume = Literal["auto", "required", "never"]
_CHOICES = ("auto", "required", "never")
_ANEW = 'resume="never" (--resume never) starts anew'


def check_resume(resume: Any) -> None:
    """Refuse what is none of "auto", "required" and "never".

    Raises:
        ValueError: names the argument, what was expected and what came.
    """
    if resume not in _CHOICES:
        raise ValueError(f"resume: expected one of {', '.join(_CHOICES)}; got {resume!r}")


class Unfinished:
    """The folder of a run that goes on; see the head of this module.

    Attributes:
        path: of the folder.
        state: what the last committed step left, plain values for JSON; empty at first.
        outputs: a folder for what the steps gave.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outputs = path / "outputs"
        self.state: dict[str, Any] = {}

    def emptied(self, name: str) -> Path:
        """A folder of this name in that of the run, with nothing in it."""
        found = self.path / name
        remove(found)
        found.mkdir()
        return found

    def store(self, step: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """See the tensors that a step changed to the disk; they count once it is committed."""
        path = self._tensors(step)
        remove(path)
        if tensors:
            save_file(dict(tensors), path)
            sync(path)

    def commit(self, state: Mapping[str, Any]) -> None:
        """A step is done: this is the state from which another run goes on."""
        sync(self.outputs)
        sync(self.path)
        _write_json(self.path / "state.json", state)
        self.state = dict(state)

    def where(self, steps: int) -> dict[str, int]:
        """The step that changed each tensor, among the first `steps`."""
        found: dict[str, int] = {}
        for step in range(steps):
            if self._tensors(step).exists():
                with safe_open(self._tensors(step), "pt") as file:
                    found.update(dict.fromkeys(file.keys(), step))
        return found

    def read(self, step: int, name: str) -> torch.Tensor:
        """A tensor that a step changed."""
        with safe_open(self._tensors(step), "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def _tensors(self, step: int) -> Path:
        return self.path / f"step-{step:04}.safetensors"


@contextmanager
def unfinished_run(
    target: Path, fingerprint: Mapping[str, Any], resume: Resume
) -> Iterator[Unfinished]:
    """What an earlier run on the target has done, or a new folder; removed if the block ends well.

    After an error it stays for the next run, unless no step has been committed.

    Args:
        target: that the run writes in the end.
        fingerprint: plain values for JSON by what they are of, such as "recipe"; they must be those
            of the earlier run.
        resume: "auto" goes on from an earlier run if there is one, "required" refuses to begin
            anew, "never" removes what there is.

    Raises:
        ValueError: the earlier run was of something else, or there is none to go on from; or a
            process does not see the folder, or has other arguments than the first.
        BlockingIOError: another run is on the target.
    """
    group = sharing_group()
    run = Unfinished(unfinished(target))
    with ExitStack() as stack:
        with errors_of_all(group):
            if is_first():
                stack.enter_context(_taken(run, target, fingerprint, resume))
        run.state = gathered_objects(run.state, group)[0]
        with errors_of_all(group):
            _require_alike(run, target, fingerprint)
        yield run


@contextmanager
def _taken(
    run: Unfinished, target: Path, fingerprint: Mapping[str, Any], resume: Resume
) -> Iterator[None]:
    """Have a run's folder for oneself, with what is in it, or made; see `unfinished_run`."""
    path = run.path
    if resume == "required" and not (path / "state.json").exists():
        raise ValueError(f"resume: expected an unfinished run on {target}; there is none")
    if not path.exists():
        new_folder(path, target.parent)
    with held_alone(path) as alone:
        if not alone:
            raise BlockingIOError(f"{target}: another run is writing it")
        if resume == "never" or not (path / "state.json").exists():
            _empty(path)
            _write_json(path / "fingerprint.json", fingerprint)
        else:
            said = f"resume: the unfinished run on {target} was with"
            _require_same(path, fingerprint, said, _ANEW)
            run.state = _read_json(path / "state.json")
        run.outputs.mkdir(exist_ok=True)
        try:
            yield
        except BaseException:
            if not (path / "state.json").exists():
                shutil.rmtree(path, ignore_errors=True)
            raise
        shutil.rmtree(path, ignore_errors=True)


def _require_alike(run: Unfinished, target: Path, fingerprint: Mapping[str, Any]) -> None:
    """Refuse a process that does not see what the first one keeps, or that runs something else."""
    if not run.outputs.is_dir():
        raise ValueError(
            f"target: expected a folder that all processes see; {target.parent} is another here"
        )
    others = {what: value for what, value in fingerprint.items() if what != "source"}
    _require_same(run.path, others, "processes: expected the same run on all; the first has", "")


def _require_same(path: Path, fingerprint: Mapping[str, Any], said: str, way_out: str) -> None:
    """Refuse another fingerprint than that of a run's folder; `said` comes before what differs."""
    try:
        before = _read_json(path / "fingerprint.json")
    except (OSError, ValueError):
        before = {}
    now = json.loads(json.dumps(fingerprint))
    for what, value in now.items():
        if before.get(what) != value:
            differing = _differing(what, before, now)
            raise ValueError(f"{said} {differing}" + (f"; {way_out}" if way_out else ""))


def _differing(what: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What was otherwise, as far down as dictionaries tell."""
    one, other = before.get(what), now[what]
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*other, *one]:
            if one.get(key) != other.get(key):
                return f"another {what}: {_differing(key, one, {key: other.get(key)})}"
    return f"another {what} ({_short(one)}, not {_short(other)})"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _empty(path: Path) -> None:
    for entry in list(path.iterdir()):
        remove(entry)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def _write_json(path: Path, value: Any) -> None:
    with replacing_file(path, force=True) as file:
        file.write(json.dumps(value).encode())
