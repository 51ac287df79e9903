"""A target that is written where it stays, so that another run can go on where one has ended.

Files are written from their first byte to their last. Now and then what there is goes to the disk,
and a note says how far that is; whatever ends the run, the next one cuts the file off there and
goes on. A tensor that is in it already is not made again.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .atomic import new_file, sync
from .formats.base import Edit
from .leftovers import remove

#: A note is made after so many bytes, or so many seconds, whichever comes first.
NOTE_BYTES = 1 << 28
NOTE_SECONDS = 10.0


class Draft:
    """A file or a folder that grows under another name than its target's.

    Args:
        path: of the file or the folder. Its own folder is there.
        state: what `state` was when the last run made a note; empty at first.
        save: called to make a note: `state` counts once it returns.
        finish: called with `path` once all is written, in place of a rename to the target.

    Raises:
        FileNotFoundError: a file that the note speaks of is not there, or shorter than it says.

    Attributes:
        names: the tensors that are written and need not be made again.
    """

    def __init__(
        self,
        path: Path,
        state: Mapping[str, Any],
        save: Callable[[], None],
        finish: Callable[[Path], None] | None = None,
    ) -> None:
        self.path, self.finish = path, finish
        self.names: set[str] = set(state.get("names", ()))
        self._bytes: dict[str, int] = dict(state.get("bytes", {}))
        self._whole: set[str] = set(state.get("whole", ()))
        self._save = save
        self._file: _Onward | None = None
        self._key, self._at = "", ""
        self._seconds = time.monotonic()
        for key, size in [*self._bytes.items(), *((key, 0) for key in self._whole)]:
            one = path if key == path.name and not path.is_dir() else path / key
            if not one.exists() or one.stat().st_size < size:
                raise FileNotFoundError(f"{one}: expected what an earlier run has written")

    @property
    def state(self) -> dict[str, Any]:
        """What is on the disk, as values that JSON holds."""
        return {"names": sorted(self.names), "bytes": self._bytes, "whole": sorted(self._whole)}

    def is_whole(self, key: str) -> bool:
        """Whether the file of this name has been written to its end."""
        return key in self._whole

    @contextmanager
    def file(self, path: Path, permissions: int, key: str, *, onward: bool) -> Iterator[BinaryIO]:
        """A file of the draft, to be written from its first byte; on the disk when the block ends.

        Args:
            path: of the file. permissions: of a new one. key: its name for notes.
            onward: whether the bytes of its format do not change once they are written, so that
                the file goes on where it was; else it is begun anew.
        """
        known = self._bytes.get(key, 0) if onward else 0
        if known:
            with open(path, "r+b") as again:
                again.truncate(known)
        else:
            remove(path)
            with new_file(path, permissions):
                pass
        with open(path, "r+b") as opened:
            opened.seek(0, os.SEEK_END)
            file = _Onward(opened, known)
            self._file, self._key, self._at = file if onward else None, key, ""
            yield file  # type: ignore[misc]
            self._file = None
            opened.flush()
            os.fsync(opened.fileno())
        sync(path.parent)
        self._written()
        self._whole.add(key)
        self._bytes.pop(key, None)
        self._save()

    def edit(self, edit: Edit) -> Edit:
        """An edit that leaves out what is written, and makes notes between tensors."""

        def edited(name: str) -> Any:
            self._written()
            if self._file is not None and self._is_time(self._file):
                self._bytes[self._key] = self._file.synced()
                self._save()
                self._seconds = time.monotonic()
            if name in self.names:
                return None
            found = edit(name)
            if found is not None:
                self._at = name
            return found

        return edited

    def _written(self) -> None:
        """The tensor that was edited last has been written."""
        if self._at:
            self.names.add(self._at)
            self._at = ""

    def _is_time(self, file: "_Onward") -> bool:
        new = file.new_since(self._bytes.get(self._key, 0))
        return new >= NOTE_BYTES or (new > 0 and time.monotonic() - self._seconds >= NOTE_SECONDS)


class _Onward:
    """A file whose first bytes are there: they are passed over as they are written again.

    Args:
        file: open to read and write, at its end. known: its size.
    """

    def __init__(self, file: BinaryIO, known: int) -> None:
        self._file, self._known, self._at = file, known, 0

    def write(self, data: Any) -> int:
        """Write what is not there yet."""
        memory = memoryview(data).cast("B")
        left = max(0, min(len(memory), self._known - self._at))
        self._at += len(memory)
        if left < len(memory):
            self._file.write(memory[left:])
        return len(memory)

    def new_since(self, size: int) -> int:
        """How many bytes there are beyond a size."""
        return max(0, self._at - max(size, self._known))

    def synced(self) -> int:
        """The size of the file, all of which is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return max(self._at, self._known)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
