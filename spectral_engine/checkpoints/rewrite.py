"""Open a checkpoint of any format, and write it again with some of its tensors changed."""

import os
from collections.abc import Callable, Collection
from contextlib import nullcontext
from pathlib import Path

import torch

from .atomic import (
    check_replaceable,
    new_folder,
    permissions,
    put_file,
    put_folder,
    replacing_file,
    replacing_folder,
    sync,
)
from .draft import Draft
from .folder import Folder, weight_file
from .formats.base import Checkpoint, CheckpointFile, Edit, brief, naming
from .formats.npz_format import NpzFile
from .formats.safetensors_format import write_safetensors
from .formats.torch_format import SUFFIXES as TORCH_SUFFIXES
from .formats.torch_format import TorchFile
from .leftovers import recover
from .sparse.reader import open_safetensors
from .termination import cleaning_up

Transform = Callable[[str, torch.Tensor], torch.Tensor | None]

_SAFETENSORS = ".safetensors"
_FORMATS: dict[str, Callable[[Path], CheckpointFile]] = {
    _SAFETENSORS: open_safetensors,
    ".npz": NpzFile,
    **dict.fromkeys(TORCH_SUFFIXES, TorchFile),
}


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a weight file, or a folder of them, to read one tensor at a time.

    Args:
        path: a .safetensors file; a Hugging Face style folder; a .pt, .pth, .bin or .ckpt file
            that holds a state dict, whose pickle is taken apart and never run; or an .npz file.
            A folder that a killed run has left aside is put back first.

    Returns:
        The checkpoint; close it, or use it in a `with` block.

    Raises:
        CheckpointError: a ValueError; the file is truncated, corrupt or hostile.
        ValueError: another suffix, or a path that the system cannot name.
        OSError: the system cannot read it.
    """
    path = _existing(path, "path")
    return Folder(path) if path.is_dir() else _open_file(path)


def rewrite(
    source: str | os.PathLike[str] | Checkpoint,
    target: str | os.PathLike[str],
    transform: Transform,
    *,
    select: Collection[str] | None = None,
    force: bool = False,
    seen: Callable[[str], None] | None = None,
    draft: Draft | None = None,
) -> None:
    """Write a checkpoint again with each tensor as `transform(name, tensor)` returns it.

    A folder gives a folder with the same files, those that hold no weights copied as they are; a
    file gives a file of its own format, or safetensors. Of a training checkpoint written as
    safetensors only the state dict is kept. The target appears whole or not at all.

    Args:
        source: a path, or a checkpoint that `open_checkpoint` opened and that stays open.
        target: a path, which may be the source itself.
        transform: gets a private copy and returns a tensor of the same shape and dtype, or None
            to keep the stored bytes. It is asked in the order of the target, once for tensors
            that share their memory (under the first of their names), and neither for a dtype
            that torch lacks nor where `reason_to_keep` has a reason.
        select: ask for these names only; the other tensors are copied without being loaded.
        force: replace a target that exists: a file by a file, a checkpoint folder by a folder.
        seen: called with the name of each tensor before it is written.
        draft: where the target grows, and what an earlier run has written of it, which is not
            asked for again; None for a name that goes if the run ends early.

    Raises:
        CheckpointError, OSError: as `open_checkpoint`.
        FileExistsError: the target exists, and `force` is not given.
        ValueError: names in `select` that are not there or cannot be edited; a result of another
            shape or dtype, with the tensor's name.
        TypeError: a result of another kind.
    """
    target = Path(os.path.abspath(_path(target, "target")))
    with (
        nullcontext(source) if isinstance(source, Checkpoint) else open_checkpoint(source) as opened
    ):
        path = opened.path
        edit = _edit(opened, transform, select, seen)
        if draft is not None:
            _write_draft(opened, target, edit, draft, force=force)
        elif isinstance(opened, Folder):
            check_folders(path, target)
            with replacing_folder(target, like=path, force=force) as staging:
                opened.write(staging, edit)
        elif isinstance(opened, CheckpointFile):
            convert = _is_conversion(path, target)
            with replacing_file(target, like=path, force=force) as output:
                if convert:
                    write_safetensors(opened, output, edit)
                else:
                    opened.write(output, edit)
        else:
            raise TypeError(f"source: expected a file or a folder; got {type(opened).__name__}")


def _write_draft(
    source: Checkpoint, target: Path, edit: Edit, draft: Draft, *, force: bool
) -> None:
    """Write what a draft lacks, and make it the target."""
    recover(target)
    check_replaceable(target, force=force)
    path, own = source.path, draft.path
    with cleaning_up():
        if isinstance(source, Folder):
            check_folders(path, target)
            if not own.exists():
                new_folder(own, target if target.exists() else path)
            source.write(own, edit, draft)
        elif isinstance(source, CheckpointFile) and not draft.is_whole(own.name):
            convert, rights = _is_conversion(path, target), permissions(path)
            onward = target.suffix == _SAFETENSORS
            with naming(own), draft.file(own, rights, own.name, onward=onward) as output:
                write = write_safetensors if convert else type(source).write
                write(source, output, draft.edit(edit))
        if draft.finish is not None:
            draft.finish(own)
        elif isinstance(source, Folder):
            put_folder(own, target, force=force)
        else:
            put_file(own, target, force=force)
        sync(target.parent)


def _path(value: str | os.PathLike[str], argument: str) -> Path:
    """A path that the system can name."""
    try:
        path = Path(value)
    except TypeError:
        raise TypeError(f"{argument}: expected a path, got {type(value).__name__}") from None
    try:
        valid = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        valid = False
    if not valid:
        raise ValueError(f"{argument}: expected a path that the system can name, got {path!r:.200}")
    return path


def _existing(value: str | os.PathLike[str], argument: str) -> Path:
    """A path to read, put back if a killed run has left it aside (see `leftovers`)."""
    path = _path(value, argument)
    if not os.path.lexists(path):
        recover(Path(os.path.abspath(path)))
    return path


def _open_file(path: Path) -> CheckpointFile:
    os.stat(path)  # A missing file is the first thing to say, whatever its suffix.
    opener = _FORMATS.get(path.suffix)
    if opener is None:
        known = ", ".join(_FORMATS)
        raise ValueError(f"{path}: expected a folder or a {known} file, found {path.suffix!r}")
    return opener(path)


def _edit(
    checkpoint: Checkpoint,
    transform: Transform,
    select: Collection[str] | None,
    seen: Callable[[str], None] | None,
) -> Edit:
    """`transform` with its result checked, for the names in `select`."""
    names = checkpoint.names
    selected = set(names if select is None else select)
    unknown = selected.difference(names)
    if unknown:
        raise ValueError(
            f"select: expected names in {checkpoint.path}, found {brief(sorted(unknown))}"
        )
    selected |= {checkpoint.tied_to(name) or name for name in selected}
    kept = {name: reason for name in selected if (reason := checkpoint.reason_to_keep(name))}
    if select is not None and kept:
        name, reason = next(iter(kept.items()))
        raise ValueError(
            f"select: expected tensors that can be edited, found {brief(name)}: {reason}"
        )
    selected -= kept.keys()

    def edit(name: str) -> torch.Tensor | None:
        if seen is not None:
            seen(name)
        if name not in selected or not isinstance(checkpoint.dtype(name), torch.dtype):
            return None
        result = transform(name, checkpoint.read(name))
        return None if result is None else _checked(result, name, checkpoint)

    return edit


def _checked(result: torch.Tensor, name: str, checkpoint: Checkpoint) -> torch.Tensor:
    if not isinstance(result, torch.Tensor):
        raise TypeError(
            f"transform of {name!r}: expected a tensor or None, got {type(result).__name__}"
        )
    shape, dtype = checkpoint.shape(name), checkpoint.dtype(name)
    if (tuple(result.shape), result.dtype, result.layout) != (shape, dtype, torch.strided):
        raise ValueError(
            f"transform of {name!r}: expected a dense tensor of shape {shape} and {dtype},"
            f" got {tuple(result.shape)}, {result.dtype}, {result.layout}"
        )
    return result.detach().cpu()


def _is_conversion(source: Path, target: Path) -> bool:
    """Whether the target is safetensors and the source is not; other changes are refused."""
    if target.is_dir():
        raise IsADirectoryError(f"{target}: expected a file to write, found a folder")
    same = _FORMATS.get(source.suffix) is _FORMATS.get(target.suffix)
    if not same and target.suffix != _SAFETENSORS:
        raise ValueError(
            f"{target}: expected a {source.suffix} or {_SAFETENSORS} file, found {target.suffix!r}"
        )
    return not same


def check_folders(source: Path, target: Path) -> None:
    """Refuse to replace what is no checkpoint, and to write a folder into itself."""
    if os.path.lexists(target) and not target.is_dir():
        raise NotADirectoryError(f"{target}: expected a folder to replace, found a file")
    if target.is_dir() and weight_file(target) is None and any(target.iterdir()):
        raise FileExistsError(f"{target}: expected a checkpoint folder to replace, found another")
    here, there = Path(os.path.realpath(source)), Path(os.path.realpath(target))
    if here != there and (here.is_relative_to(there) or there.is_relative_to(here)):
        raise ValueError(f"{target}: expected a folder neither inside nor around {source}")
