"""A checkpoint folder in the manner of Hugging Face: weight files, an index, and their company.

The weights are in one of, in the order in which transformers looks for them: model.safetensors,
model.safetensors.index.json with its shards, pytorch_model.bin, pytorch_model.bin.index.json with
its shards. An index is not trusted: its files must lie in the folder itself, symbolic links
resolved. One exception: the hub's cache, where snapshots/<revision>/ links into blobs/ two levels
up.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from .atomic import copy_file, new_file, new_folder, permissions
from .base import (
    MAX_JSON_BYTES,
    Checkpoint,
    CheckpointError,
    CheckpointFile,
    Edit,
    brief,
    open_regular,
    parse_json_object,
)
from .safetensors_format import SafetensorsFile
from .torch_format import TorchFile

INDEX_SUFFIX = ".index.json"
#: The weight files that a folder may have, first choice first.
WEIGHT_FILES: dict[str, type[SafetensorsFile] | type[TorchFile]] = {
    "model.safetensors": SafetensorsFile,
    "model.safetensors" + INDEX_SUFFIX: SafetensorsFile,
    "pytorch_model.bin": TorchFile,
    "pytorch_model.bin" + INDEX_SUFFIX: TorchFile,
}
#: Files that hold weights too, by their endings, wherever they lie in the folder.
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf")


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
        with ExitStack() as stack:
            self._shards: dict[str, CheckpointFile] = {
                shard: stack.enter_context(WEIGHT_FILES[main](self._inside(shard)))
                for shard in sorted(set(shard_of.values()) if shard_of is not None else [main])
            }
            self._home = self._homes(shard_of)
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

    def tied_to(self, name: str) -> str | None:
        shard = self._home[name]
        first = shard.tied_to(name)
        return first if first is not None and self._home.get(first) is shard else None

    def other_weights(self) -> list[str]:
        files = (str(file) for file in self._walk(directories=False))
        return sorted(
            file for file in files if file.endswith(WEIGHT_SUFFIXES) and file not in self._shards
        )

    def close(self) -> None:
        self._open.close()

    def write(self, target: Path, edit: Edit) -> None:
        """Write the weight files into an empty folder, and copy every other file as it is."""
        for folder in self._walk(directories=True):
            new_folder(target / folder, self.path / folder)
        for file in self._walk(directories=False):
            source = self._inside(str(file))
            shard = self._shards.get(str(file))
            if shard is None:
                copy_file(source, target / file)
                continue
            with new_file(target / file, permissions(source)) as output:
                shard.write(output, partial(self._edit_own, shard, edit))

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

    def _read_metadata(self, index: dict[str, object], main: str) -> Mapping[str, object]:
        if not index:
            return self._shards[main].metadata
        metadata = index.get("metadata")
        return metadata if isinstance(metadata, dict) else {}

    def _inside(self, file: str) -> Path:
        """The path of a file of this folder, refused if it leads outside."""
        path = self.path / file
        root = self.path.resolve()
        allowed = [root]
        if root.parent.name == "snapshots":
            allowed.append(root.parent.parent / "blobs")
        resolved = path.resolve()
        if not any(resolved.is_relative_to(folder) for folder in allowed):
            raise CheckpointError(self.path, "files inside this folder", brief(file))
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
            yield from (here / name for name in (folders if directories else files))


def weight_file(folder: Path) -> str | None:
    """The file that makes a folder a checkpoint, or None."""
    return next((name for name in WEIGHT_FILES if os.path.lexists(folder / name)), None)


def _read_index(path: Path) -> tuple[dict[str, object], dict[str, str]]:
    with open_regular(path) as file:
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
    """A file name without a folder, on any system."""
    return file_name not in ("", ".", "..") and not set(file_name) & set("/\\:\0")


def _fail(error: OSError) -> None:
    raise error
