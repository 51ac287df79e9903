"""A weight file or folder compressed, and made dense again."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from spectral_engine._util.checks import boolean, file_path
from spectral_engine._util.progress import Progress, check_progress, reporting
from spectral_engine._util.text import natural
from spectral_engine.checkpoints import Checkpoint, open_checkpoint, rewrite
from spectral_engine.checkpoints.atomic import replacing_file, replacing_folder
from spectral_engine.checkpoints.embeddings import LOOKS_LIKE_ONE, looks_like_embedding
from spectral_engine.checkpoints.folder import Folder
from spectral_engine.checkpoints.formats.base import CheckpointFile
from spectral_engine.checkpoints.rewrite import check_folders
from spectral_engine.checkpoints.sparse.company import CONFIG, compressed_config
from spectral_engine.checkpoints.sparse.reader import CompressedFile
from spectral_engine.compression.report import CompressedWeight, CompressReport
from spectral_engine.compression.writing import Written, write_compressed
from spectral_engine.layers.find import Skipped
from spectral_engine.layers.selector import Selector

_SAFETENSORS = ".safetensors"
LARGER = "no sparse form is smaller"


def compress_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    targets: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
    keep_negative_zero: bool = True,
    force: bool = False,
    progress: Progress[CompressedWeight] = True,
) -> CompressReport:
    """Write a pruned weight file or folder again without its zeros.

    Every value is kept bit for bit; `decompress_file` gives the very file back. What has too few
    zeros to become smaller stays dense, and so does what looks like an embedding, unless `targets`
    names it. A Hugging Face folder loads with `AutoModel.from_pretrained` once `spectral_engine`
    is imported. docs/format.md describes the format.

    One tensor is in memory at a time, and the target appears whole or not at all.

    Args:
        source: .safetensors, .pt, .pth, .bin, .npz, or a folder of .safetensors; no code of a
            pickle is run.
        target: .safetensors for a file, a folder for a folder.
        targets, ignore: globs over tensor names, with or without ".weight", or "re:...".
        keep_negative_zero: store -0 as the value that it is. False makes it +0, which is not
            stored: a product with a mask of zeros and ones, as `torch.nn.utils.prune` computes it,
            leaves -0 for every negative weight.
        force: replace an existing target.
        progress: True for a bar on a terminal, False, or a function of each row.

    Returns:
        How each weight is stored, and what stays dense.

    Raises:
        TypeError, ValueError, OSError: name what was wrong; nothing is left half-written.

    >>> import tempfile, torch
    >>> import spectral_engine as se
    >>> from pathlib import Path
    >>> from safetensors.torch import save_file
    >>> folder = Path(tempfile.mkdtemp())
    >>> model = torch.nn.Linear(256, 256)
    >>> _ = se.prune(model, "magnitude", 0.9)
    >>> save_file(model.state_dict(), folder / "dense.safetensors")
    >>> report = se.compress_file(folder / "dense.safetensors", folder / "small.safetensors")
    >>> round(report.weights[0].bytes / report.weights[0].dense_bytes, 3)
    0.135
    >>> se.decompress_file(folder / "small.safetensors", folder / "again.safetensors")
    >>> again = (folder / "again.safetensors").read_bytes()
    >>> again == (folder / "dense.safetensors").read_bytes()
    True
    """
    boolean("force", force)
    boolean("keep_negative_zero", keep_negative_zero)
    check_progress(progress)
    selector = Selector.of(targets, ignore)
    report = CompressReport()
    aim = Path(os.path.abspath(file_path("target", target)))
    with open_checkpoint(file_path("source", source)) as checkpoint:
        path = checkpoint.path
        wanted = _wanted(checkpoint, selector, report)
        with reporting(progress, "compressing", len(wanted)) as done:
            if isinstance(checkpoint, Folder):
                _check_folder(checkpoint, aim)
                with replacing_folder(aim, like=path, force=force) as staging:
                    _write_folder(checkpoint, staging, wanted, report, done, keep_negative_zero)
            elif isinstance(checkpoint, CheckpointFile):
                if aim.suffix != _SAFETENSORS or aim.is_dir():
                    raise ValueError(f"target: expected a {_SAFETENSORS} file; got {aim}")
                with replacing_file(aim, like=path, force=force) as output:
                    written = write_compressed(
                        checkpoint, output, wanted.__contains__, done,
                        keep_negative_zero=keep_negative_zero,
                    )  # fmt: skip
                    _add(report, written)
    report.weights.sort(key=lambda row: natural(row.name))  # a file has 10 before 2
    report.unmatched += selector.unmatched
    return report


def decompress_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    force: bool = False,
    progress: Progress[str] = True,
) -> None:
    """Write a compressed weight file or folder again with its zeros: the very file it came from.

    Args:
        source: as `compress_file` or `save_pretrained` wrote it.
        target: .safetensors for a file, a folder for a folder.
        force: replace an existing target.
        progress: True for a bar on a terminal, False, or a function of the name of each tensor.

    Raises:
        TypeError, ValueError, OSError: name what was wrong; nothing is left half-written.

    >>> import tempfile, torch
    >>> import spectral_engine as se
    >>> from pathlib import Path
    >>> from safetensors.torch import load_file, save_file
    >>> folder = Path(tempfile.mkdtemp())
    >>> save_file({"fc.weight": torch.eye(64)}, folder / "dense.safetensors")
    >>> report = se.compress_file(folder / "dense.safetensors", folder / "small.safetensors")
    >>> se.decompress_file(folder / "small.safetensors", folder / "again.safetensors")
    >>> torch.equal(load_file(folder / "again.safetensors")["fc.weight"], torch.eye(64))
    True
    """
    boolean("force", force)
    check_progress(progress)
    target = file_path("target", target)
    with open_checkpoint(file_path("source", source)) as checkpoint:
        if not any(isinstance(one, CompressedFile) for one in _files(checkpoint)):
            raise ValueError(f"source: expected a compressed file or folder; got {source}")
        with reporting(progress, "decompressing", len(checkpoint.names)) as done:
            rewrite(
                checkpoint, target, lambda name, tensor: None, select=(), force=force, seen=done
            )


def _wanted(checkpoint: Checkpoint, selector: Selector, report: CompressReport) -> set[str]:
    """The names to compress; those that stay dense by choice go into the report."""
    wanted = set()
    for name in checkpoint.names:
        if len(checkpoint.shape(name)) < 2:
            continue
        called = [name, name.removesuffix(".weight")]
        opt_in = LOOKS_LIKE_ONE if looks_like_embedding([name]) else ""
        reason = selector.reason_against(called, opt_in=opt_in)
        if reason is None:
            wanted.add(name)
        else:
            report.skipped.append(Skipped(name, reason.replace("to prune it", "to compress it")))
    return wanted


def _files(checkpoint: Checkpoint) -> list[CheckpointFile]:
    if isinstance(checkpoint, Folder):
        return checkpoint.files
    return [checkpoint] if isinstance(checkpoint, CheckpointFile) else []


def _check_folder(folder: Folder, target: Path) -> None:
    if any(one.path.suffix != _SAFETENSORS for one in folder.files):
        raise ValueError(
            f"source: expected a folder of {_SAFETENSORS}; got {folder.files[0].path.name}. Load "
            "it with transformers and save_pretrained, which writes that"
        )
    check_folders(folder.path, target)


def _write_folder(
    folder: Folder,
    staging: Path,
    wanted: set[str],
    report: CompressReport,
    done: Any,
    keep_negative_zero: bool,
) -> None:
    stored: dict[str, list[str]] = {}
    total = 0

    def write(shard: CheckpointFile, output: BinaryIO) -> None:
        nonlocal total
        own = set(folder.stored_in(shard))
        written = write_compressed(
            shard, output, (wanted & own).__contains__, done, keep_negative_zero=keep_negative_zero
        )
        stored[folder.file_of(shard)] = [n for n, of in written.names.items() if of in own]
        total += written.bytes
        _add(report, written)

    def company(file: str, text: bytes) -> bytes | None:
        if file == CONFIG:
            return compressed_config(text) if report.weights else None
        return folder.new_index(stored, total)

    folder.write_with(staging, write, company)


def _add(report: CompressReport, written: Written) -> None:
    report.weights += written.rows
    report.skipped += [Skipped(name, LARGER) for name in written.dense]
    report.dense_bytes += written.dense_bytes
    report.bytes += written.bytes
