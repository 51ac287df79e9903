"""Markdown pages as programs: their code blocks run as a reader would run them, top to bottom.

    <!-- needs: transformers -->      before a block: skipped where that is not installed
    <!-- not run: two machines -->    before a block: only read, for the reason given

`python` blocks of a page share their names. Of an `sh` block each line must be of a kind known
here: `spectral-engine` runs in this process, of `make` the target must exist, of `python FILE` and
`torchrun ... FILE` the file. A `toml` block must be recipes.
"""

import copy
import importlib.util
import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import spectral_engine as se
from spectral_engine.cli import app

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>needs|not run): (?P<said>[^>]*) -->\n)?"
    r"^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
#: Commands that are shown, and that a test must not carry out; each is tried some other way.
_SHOWN = ("pip", "git", "cd", "source", "export")


@dataclass(frozen=True)
class Block:
    """A code block. needs: packages. not_run: why it is only read, or None."""

    language: str
    text: str
    needs: tuple[str, ...] = ()
    not_run: str | None = None

    @property
    def missing(self) -> list[str]:
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def blocks_of(page: Path) -> list[Block]:
    """Every fenced block of a page that names its language."""
    return [
        Block(
            found["language"], found["text"],
            tuple(found["said"].split()) if found["mark"] == "needs" else (),
            found["said"] if found["mark"] == "not run" else None,
        )
        for found in _BLOCK.finditer(page.read_text())
    ]  # fmt: skip


@dataclass
class Reader:
    """Runs blocks in the current folder; `names` are those that Python's blocks share."""

    names: dict[str, object] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def run(self, block: Block, page: Path) -> None:
        """Run a block, or fail with its text."""
        if block.not_run is not None:
            if block.language == "python":
                compile(block.text, page.name, "exec")
            return
        if block.missing:
            self.skipped += block.missing
            return
        try:
            if block.language == "python":
                exec(compile(block.text, page.name, "exec"), self.names)
            elif block.language == "sh":
                for line in block.text.replace("\\\n", " ").splitlines():
                    _run_line(line)
            elif block.language == "toml":
                Path("block.toml").write_text(block.text)
                se.load_recipes("block.toml")
        except Exception as error:
            pytest.fail(f"{page.name}: {error!r} in:\n{block.text}")


def _run_line(line: str) -> None:
    words = shlex.split(line, comments=True)
    if not words or words[0] in _SHOWN:
        return
    command, *arguments = words
    if command == "make":
        targets = re.findall(r"^(\w+):.*##", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        unknown = {word for word in arguments if "=" not in word} - {*targets}
        assert not unknown, f"no such target: {unknown}"
    elif command == "spectral-engine":
        done = CliRunner().invoke(app, arguments)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
    elif command in ("python", "torchrun"):
        scripts = [word for word in arguments if word.endswith(".py")]
        assert scripts, f"no script in: {line}"
        for script in scripts:
            assert (REPOSITORY / script).is_file(), f"no such file: {script}"
    else:
        raise AssertionError(f"no way to check: {line}")


def write_workspace(folder: Path) -> None:
    """The files that the pages speak of: `my-model`, a tiny Llama, and `calibration.txt`."""
    words = re.findall(r"\w+", "the model reads all words of this text and keeps what it computes")
    generator = torch.Generator().manual_seed(0)
    inner, outer = (32, 32), (64, 32)
    shapes = {f"self_attn.{one}_proj": inner for one in "qkvo"}
    shapes |= {"mlp.gate_proj": outer, "mlp.up_proj": outer, "mlp.down_proj": (32, 64)}
    tensors = {"model.embed_tokens.weight": (len(words) + 2, 32), "model.norm.weight": (32,)}
    for layer in range(2):
        start = f"model.layers.{layer}."
        tensors |= {f"{start}{name}.weight": shape for name, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{start}{norm}.weight"] = (32,)
    model = folder / "my-model"
    model.mkdir()
    save_file(
        {n: torch.randn(s, generator=generator) * s[-1] ** -0.5 for n, s in tensors.items()},
        model / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": len(words) + 2,
        "max_position_embeddings": 1024, "tie_word_embeddings": True, "torch_dtype": "float32",
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip
    (model / "config.json").write_text(json.dumps(config))
    vocabulary = {word: index for index, word in enumerate(["<s>", "</s>", *words])}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None,
        "decoder": None, "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "</s>"},
    }  # fmt: skip
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    (model / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "</s>"})
    )
    lines = [" ".join(words[shift:] + words[:shift]) for shift in range(13)]
    (folder / "calibration.txt").write_text("\n".join(4 * lines) + "\n")


def own_training() -> dict[str, object]:
    """What a page may take for the reader's own: a model, its copy, an optimizer and data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    loader = [(torch.randn(16, 64), torch.randint(10, (16,))) for _ in range(40)]
    return {
        "torch": torch, "nn": nn, "model": model, "dense": copy.deepcopy(model), "loader": loader,
        "optimizer": torch.optim.AdamW(model.parameters()),
    }  # fmt: skip
