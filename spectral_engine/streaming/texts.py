"""Calibration batches of a language model from text or token ids in a file.

| file                     | what is read                                                          |
|--------------------------|-----------------------------------------------------------------------|
| .npy                     | integers: token ids of one long text (N,), or of samples (S, T)       |
| .safetensors             | one such tensor, "input_ids" if there are several                     |
| .jsonl                   | the "text" of each line                                               |
| any other                | the text itself, in UTF-8                                             |

Texts are tokenised by the folder's own tokenizer and joined, its end-of-text token between them,
and cut into samples of one length; what is left over at the end is left out.
"""

import errno
import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectral_engine._util.checks import integer
from spectral_engine.checkpoints import open_checkpoint

#: Characters of a text that are tokenised at once.
_CHUNK = 1 << 20


def token_batches(
    folder: Path, file: Path, samples: int, length: int, batch: int = 1
) -> list[dict[str, torch.Tensor]]:
    """Batches for a calibration of a folder's language model.

    Args:
        folder: with the tokenizer, if `file` holds text.
        file: see the head of this module.
        samples: how many at most. length: tokens of each. batch: samples of a batch.

    Returns:
        Batches {"input_ids": (batch, length)}, the last perhaps smaller.

    Raises:
        ValueError, TypeError: the file holds less than one sample, or something else.
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: there is text, and no transformers to tokenise it.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "ids.npy"
        >>> np.save(file, np.arange(100))
        >>> [tuple(one["input_ids"].shape) for one in token_batches(file.parent, file, 5, 16, 2)]
        [(2, 16), (2, 16), (1, 16)]
    """
    for name, value in (("samples", samples), ("length", length), ("batch", batch)):
        integer(name, value, least=1)
    ids = _ids(folder, file, samples * length)
    rows = ids if ids.ndim == 2 else ids[: len(ids) // length * length].reshape(-1, length)
    if rows.shape[1] < length or not len(rows):
        raise ValueError(
            f"calibration: expected at least {length} tokens in {file}; found {ids.shape[-1]}; "
            "give more, or a smaller length (--length)"
        )
    chosen = rows[:samples, :length].long()
    return [{"input_ids": one.clone()} for one in torch.split(chosen, batch)]


def _ids(folder: Path, file: Path, wanted: int) -> torch.Tensor:
    """Token ids (N,) or (S, T)."""
    if not file.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
    if file.suffix == ".npy":
        values = np.load(file, allow_pickle=False)
        return _checked(torch.from_numpy(np.ascontiguousarray(values)), file)
    if file.suffix == ".safetensors":
        with open_checkpoint(file) as checkpoint:
            names = checkpoint.names
            if len(names) != 1 and "input_ids" not in names:
                raise ValueError(
                    f'calibration: expected one tensor, or "input_ids", in {file}; found '
                    f"{', '.join(names[:4]) or 'none'}"
                )
            name = "input_ids" if "input_ids" in names else names[0]
            return _checked(checkpoint.read(name), file)
    return _tokenised(folder, file, wanted)


def _checked(values: torch.Tensor, file: Path) -> torch.Tensor:
    whole = not values.is_floating_point() and values.dtype != torch.bool
    if not whole or values.ndim not in (1, 2):
        raise TypeError(
            f"calibration: expected token ids, integers (N,) or (S, T), in {file}; found "
            f"{values.dtype} {tuple(values.shape)}"
        )
    return values.long()


def _tokenised(folder: Path, file: Path, wanted: int) -> torch.Tensor:
    try:
        transformers: Any = importlib.import_module("transformers")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "calibration: transformers, whose tokenizer makes token ids of a text, is not "
            "installed; pip install transformers, or give token ids in a .npy file"
        ) from None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(
            f"calibration: expected a tokenizer in {folder}, or token ids in a .npy file; {error}"
        ) from error
    ids: list[int] = []
    for i, text in enumerate(_texts(file)):
        if i and tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
        for start in range(0, len(text), _CHUNK):
            part = text[start : start + _CHUNK]
            ids += tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
            if len(ids) >= wanted:
                return torch.tensor(ids[:wanted])
    return torch.tensor(ids, dtype=torch.long)


def _texts(file: Path) -> Iterator[str]:
    try:
        if file.suffix != ".jsonl":
            yield file.read_text(encoding="utf-8")
            return
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _text_of(line, number, file)
    except UnicodeDecodeError as error:
        raise ValueError(f"calibration: expected text in UTF-8 in {file}; {error}") from error


def _text_of(line: str, number: int, file: Path) -> str:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    text = found.get("text") if isinstance(found, dict) else None
    if isinstance(text, str):
        return text
    raise ValueError(
        f'calibration: expected a JSON object with a "text" in line {number} of {file}'
    )
