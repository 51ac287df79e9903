"""A checkpoint folder in the manner of Hugging Face: weight files, an index, and their company.

The weights are in one of, in the order in which transformers looks for them: model.safetensors,
model.safetensors.index.json with its shards, pytorch_model.bin, pytorch_model.bin.index.json with
its shards. An index is not trusted: its files must lie in the folder itself, symbolic links
resolved. One exception: the hub's cache, where snapshots/<revision>/ links into blobs/ two levels
up.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch

from .atomic import copy_file, new_file, new_folder, permissions
from .draft import Draft
from .formats.base import (
    MAX_JSON_BYTES,
    Checkpoint,
    CheckpointError,
    CheckpointFile,
    Edit,
    brief,
    open_regular,
    open_weights,
    parse_json_object,
)
from .formats.torch_format import TorchFile
from .leftovers import is_leftover, remove
from .sparse.company import CONFIG, dense_config, index_text
from .sparse.reader import CompressedFile, by_tensor, open_safetensors

SAFETENSORS = ".safetensors"
INDEX_SUFFIX = ".index.json"
#: The weight files that a folder may have, first choice first.
WEIGHT_FILES: dict[str, Callable[[Path], CheckpointFile]] = {
    "model.safetensors": open_safetensors,
    "model.safetensors" + INDEX_SUFFIX: open_safetensors,
    "pytorch_model.bin": TorchFile,
    "pytorch_model.bin" + INDEX_SUFFIX: TorchFile,
}
#: Files that hold weights too, by their endings, wherever they lie in the folder.
WEIGHT_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".gguf",
    ".npz",
    ".npy",
    ".onnx",
    ".pkl",
)


class Folder(Checkpoint):
    """A checkpoint folder; `names` goes through the shards in the order of their file names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        main = weight_file(path)
        if main is None:
            raise CheckpointError(path, f"one of {', '.join(WEIGHT_FILES)}", "none of them")
        shard_of: dict[str, str] | None = None
        index: dict[str, object] = {}
        if main.endswith(INDEX_SUFFIX):
            index, shard_of = _read_index(self._inside(main))
        self._main, self._index = main, index
        with ExitStack() as stack:
            self._shards: dict[str, CheckpointFile] = {
                shard: stack.enter_context(WEIGHT_FILES[main](self._inside(shard)))
                for shard in sorted(set(shard_of.values()) if shard_of is not None else [main])
            }
            shard_of = shard_of and by_tensor(shard_of, self._shards)
            self._home = self._homes(shard_of)
            self._omitted = self._hide_omitted(shard_of or {})
            self._open = stack.pop_all()
        self._metadata = self._read_metadata(index, main)

    @property
    def names(self) -> list[str]:
        return list(self._home)

    @property
    def metadata(self) -> Mapping[str, object]:
        """The metadata of the index, or of the single file."""
        return self._metadata

    def shape(self, name: str) -> tuple[int, ...]:
        return self._home[name].shape(name)

    def dtype(self, name: str) -> torch.dtype | str:
        return self._home[name].dtype(name)

    def read(self, name: str) -> torch.Tensor:
        return self._home[name].read(name)

    def read_rows(self, name: str, rows: Sequence[int]) -> torch.Tensor | None:
        return self._home[name].read_rows(name, rows)

    def tied_to(self, name: str) -> str | None:
        return self._home[name].tied_to(name)

    def reason_to_keep(self, name: str) -> str | None:
        return self._home[name].reason_to_keep(name)

    def other_weights(self) -> dict[str, str]:
        files = (str(file) for file in self._walk(directories=False))
        result = {
            file: "a file of other weights, copied as it is"
            for file in sorted(files)
            if file.lower().endswith(WEIGHT_SUFFIXES) and file not in self._shards
        }
        for file, shard in self._shards.items():
            for name, reason in shard.other_weights().items():
                result[f"{file}: {name}"] = reason
        return {**result, **self._omitted}

    def close(self) -> None:
        self._open.close()

    def write(self, target: Path, edit: Edit, draft: Draft | None = None) -> None:
        """Write the weight files into an empty folder, and copy every other file as it is.

        Of a folder that is compressed, the index and config.json become those of dense weights.
        With a draft the folder holds what an earlier run has written.
        """
        edit = edit if draft is None else draft.edit(edit)
        compressed = any(isinstance(shard, CompressedFile) for shard in self._shards.values())
        self.write_with(
            target,
            lambda shard, output: shard.write(output, partial(self._edit_own, shard, edit)),
            self._dense_company if compressed else lambda file, text: None,
            draft,
        )

    def write_with(
        self,
        target: Path,
        write_shard: Callable[[CheckpointFile, BinaryIO], None],
        company: Callable[[str, bytes], bytes | None],
        draft: Draft | None = None,
    ) -> None:
        """Write into an empty folder, the weight files each as `write_shard` does.

        Once they are written, `company` is asked for the index and config.json what they become,
        None where they stay as they are. Every other file is copied.
        """
        for folder in self._walk(directories=True):
            if draft is None or not (target / folder).exists():
                new_folder(target / folder, self.path / folder)
        for file in self._walk(directories=False):
            source = self._inside(str(file))
            shard = self._shards.get(str(file))
            if shard is not None and draft is not None:
                if not draft.is_whole(str(file)):
                    onward, rights = file.suffix == SAFETENSORS, permissions(source)
                    with draft.file(target / file, rights, str(file), onward=onward) as output:
                        write_shard(shard, output)
            elif shard is not None:
                with new_file(target / file, permissions(source)) as output:
                    write_shard(shard, output)
            elif str(file) not in (self._main, CONFIG):
                remove(target / file)
                copy_file(source, target / file)
        for name in {self._main, CONFIG} - self._shards.keys():
            source = self._inside(name)
            if not source.exists():
                continue
            remove(target / name)
            with open_regular(source) as reader:
                text = company(name, reader.read(MAX_JSON_BYTES))
            if text is None:
                copy_file(source, target / name)
                continue
            with new_file(target / name, permissions(source)) as output:
                output.write(text)

    def stored_in(self, shard: CheckpointFile) -> list[str]:
        """The tensors of a shard that are this folder's, as the index says."""
        return [name for name in shard.names if self._home.get(name) is shard]

    def new_index(self, stored: Mapping[str, Iterable[str]], size: int) -> bytes:
        """The index where shards hold tensors under other names."""
        return index_text(self._index, stored, size)

    @property
    def files(self) -> list[CheckpointFile]:
        """The shards, in the order of their names."""
        return list(self._shards.values())

    def file_of(self, shard: CheckpointFile) -> str:
        """The name of a shard's file."""
        return next(file for file, one in self._shards.items() if one is shard)

    def _dense_company(self, file: str, text: bytes) -> bytes | None:
        if file == CONFIG:
            return dense_config(text)
        stored = {one: self.stored_in(shard) for one, shard in self._shards.items()}
        size = sum(_size(shard, name) for shard in self._shards.values() for name in shard.names)
        return self.new_index(stored, size)

    def _edit_own(self, shard: CheckpointFile, edit: Edit, name: str) -> torch.Tensor | None:
        """Edit a tensor unless the index leaves it out or finds it in another shard."""
        return edit(name) if self._home.get(name) is shard else None

    def _homes(self, shard_of: dict[str, str] | None) -> dict[str, CheckpointFile]:
        """Name -> shard, in the order of the shards; every name of the index must be there."""
        homes = {
            name: shard
            for file, shard in self._shards.items()
            for name in shard.names
            if shard_of is None or shard_of.get(name) == file
        }
        for name, file in (shard_of or {}).items():
            if name not in homes:
                raise CheckpointError(
                    self._shards[file].path, f"tensor {brief(name)}, as the index says", "no such"
                )
        return homes

    def _hide_omitted(self, shard_of: Mapping[str, str]) -> dict[str, str]:
        """Hide the tensors that the index leaves out or finds elsewhere; the reason for each."""
        reasons = {}
        for file, shard in self._shards.items():
            own = {n for n in shard.names if self._home.get(n) is shard}
            changing = {shard.tied_to(name) or name: name for name in own}
            omitted = [name for name in shard.names if name not in own]
            for name in omitted:
                where = shard_of.get(name)
                said = f"the index finds it in {where}" if where else "the index leaves it out"
                twin = changing.get(shard.tied_to(name) or name)
                then = (
                    f"it is the memory of {twin}, and changes with it" if twin else "kept as it is"
                )
                reasons[f"{file}: {name}"] = f"{said}; {then}"
            shard.hide(omitted)
        return reasons

    def _read_metadata(self, index: dict[str, object], main: str) -> Mapping[str, object]:
        if not index:
            return self._shards[main].metadata
        metadata = index.get("metadata")
        return metadata if isinstance(metadata, dict) else {}

    def _inside(self, file: str) -> Path:
        """The path of a file of this folder, refused if it leads outside."""
        path = self.path / file
        root = Path(os.path.realpath(self.path))
        allowed = [root]
        if root.parent.name == "snapshots":
            allowed.append(root.parent.parent / "blobs")
        resolved = Path(os.path.realpath(path))
        if not any(resolved.is_relative_to(folder) for folder in allowed):
            raise CheckpointError(self.path, "files inside this folder", brief(file))
        if path.is_symlink() and not os.path.exists(path):
            raise CheckpointError(
                self.path, "links that lead to a file", f"{brief(file)}, which leads nowhere"
            )
        return path

    def _walk(self, *, directories: bool) -> Iterator[Path]:
        """Paths relative to this folder: its folders, parents first, or its files."""
        for root, folders, files in os.walk(self.path, onerror=_fail):
            here = Path(root).relative_to(self.path)
            for folder in folders:
                if (self.path / here / folder).is_symlink():
                    raise CheckpointError(
                        self.path, "no symbolic link to a folder", brief(str(here / folder))
                    )
            folders[:] = [folder for folder in folders if not is_leftover(folder)]
            names = folders if directories else files
            yield from (here / name for name in names if not is_leftover(name))


def _size(shard: CheckpointFile, name: str) -> int:
    dtype = shard.dtype(name)
    return math.prod(shard.shape(name)) * dtype.itemsize if isinstance(dtype, torch.dtype) else 0


def weight_file(folder: Path) -> str | None:
    """The file that makes a folder a checkpoint, or None."""
    return next((name for name in WEIGHT_FILES if os.path.lexists(folder / name)), None)


def _read_index(path: Path) -> tuple[dict[str, object], dict[str, str]]:
    with open_weights(path) as file:
        text = file.read(MAX_JSON_BYTES + 1)
    if len(text) > MAX_JSON_BYTES:
        raise CheckpointError(path, f"at most {MAX_JSON_BYTES} bytes", "more")
    index = parse_json_object(text, path, "the index")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(path, "weight_map to be a JSON object", brief(weight_map))
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or not _is_plain(file_name):
            raise CheckpointError(
                path, f"{brief(name)} to be in a file beside the index", brief(file_name)
            )
    return index, weight_map


def _is_plain(file_name: str) -> bool:
    """A file name without a folder, on any system, that can be written in UTF-8."""
    plain = file_name not in ("", ".", "..") and not set(file_name) & set("/\\:\0")
    return plain and not any("\ud800" <= letter <= "\udfff" for letter in file_name)


def _fail(error: OSError) -> None:
    raise error
