"""Calibration batches out of files."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import spectral_engine as se


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("rows", [False, True])
def test_token_ids(tmp_path, suffix, rows):
    """Catches ids that come in another order or dtype, samples cut from rows, and one too many."""
    ids = torch.arange(40, dtype=torch.int32)
    wanted = ids[:36].reshape(3, 12)
    stored = wanted if rows else ids
    file = tmp_path / f"ids{suffix}"
    if suffix == ".npy":
        np.save(file, stored.numpy())
    else:
        save_file({"input_ids": stored, "other": torch.ones(1)}, file)
    found = se.token_batches(tmp_path, file, samples=3, length=12, batch=2)
    assert [tuple(one["input_ids"].shape) for one in found] == [(2, 12), (1, 12)]
    assert torch.equal(torch.cat([one["input_ids"] for one in found]), wanted.long())
    [only] = se.token_batches(tmp_path, file, samples=1, length=5)
    assert only["input_ids"].tolist() == [[0, 1, 2, 3, 4]]


def test_bad_files(tmp_path):
    """Catches an error that does not name the file, and values that are no ids taken for them."""
    np.save(tmp_path / "floats.npy", np.ones(9))
    np.save(tmp_path / "short.npy", np.arange(3))
    save_file({"a": torch.arange(9), "b": torch.arange(9)}, tmp_path / "two.safetensors")
    for name, kind, said in (
        ("floats.npy", TypeError, r"expected token ids, integers \(N,\) or \(S, T\)"),
        ("short.npy", ValueError, "expected at least 4 tokens"),
        ("two.safetensors", ValueError, 'expected one tensor, or "input_ids"'),
    ):
        with pytest.raises(kind, match=said):
            se.token_batches(tmp_path, tmp_path / name, samples=2, length=4)
    with pytest.raises(ValueError, match="length: expected at least 1"):
        se.token_batches(tmp_path, tmp_path / "short.npy", samples=2, length=0)


def test_text_is_tokenised_by_the_folder(tmp_path):
    """Catches texts that are joined without a token between them, tokens that a model never sees in
    the middle of a text, and a .jsonl that is read as text."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["[UNK]", "[EOS]", "one", "two", "three"])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="[UNK]", eos_token="[EOS]"
    )
    made.save_pretrained(tmp_path)
    (tmp_path / "a.txt").write_text("one two three four one two")
    [found] = se.token_batches(tmp_path, tmp_path / "a.txt", samples=9, length=6)
    assert found["input_ids"].tolist() == [[2, 3, 4, 0, 2, 3]]
    lines = [json.dumps({"text": text, "id": 1}) for text in ("one", "two three")]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    [found] = se.token_batches(tmp_path, tmp_path / "a.jsonl", samples=9, length=4)
    assert found["input_ids"].tolist() == [[2, 1, 3, 4]]
    (tmp_path / "b.jsonl").write_text('{"words": 1}')
    with pytest.raises(ValueError, match='expected a JSON object with a "text" in line 1'):
        se.token_batches(tmp_path, tmp_path / "b.jsonl", samples=9, length=4)
