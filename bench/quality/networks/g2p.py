"""g2p-en, which spells English words in phonemes: a GRU that reads and a GRU that writes.

What is measured is how often a word's phonemes are all those of the dense network. Words come from
the sentences of `text`; none is both calibrated on and measured with.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench.quality.networks.network import Network, package_file
from bench.quality.networks.text import by_length, words

REQUIREMENT = "g2p-en==2.1.0"
WEIGHTS = "g2p_en/checkpoint20.npz"
WIDTH, LETTERS, PHONEMES, LONGEST = 256, 29, 74, 20
END_OF_WORD, START, END = 2, 2, 3
#: The checkpoint's names of the modules' parameters.
RECURRENT = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}


class GraphemeToPhoneme(nn.Module):
    """Letters (N, length), the mark of a word's end last, to logits (N, 20, 74) of phonemes.

    The likeliest phoneme is the next step's input. A word that has ended takes no more steps, since
    calibration would see them too; its further logits say "the end".
    """

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(LETTERS, WIDTH)
        self.reader = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.phonemes = nn.Embedding(PHONEMES, WIDTH)
        self.writer = nn.GRUCell(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, PHONEMES)

    def forward(self, letters: Tensor) -> Tensor:
        hidden = self.reader(self.letters(letters))[1][0]
        logits = torch.zeros(len(letters), LONGEST, PHONEMES)
        logits[:, :, END] = 1.0
        words = torch.arange(len(letters))
        written = torch.full_like(words, START)
        for step in range(LONGEST):
            hidden = self.writer(self.phonemes(written), hidden)
            logits[words, step] = self.output(hidden)
            written = logits[words, step].argmax(1)
            going = written != END
            words, written, hidden = words[going], written[going], hidden[going]
            if len(words) == 0:
                break
        return logits


def load_model(weights: Path) -> GraphemeToPhoneme:
    """The network of a checkpoint20.npz."""
    model = GraphemeToPhoneme()
    with np.load(weights) as arrays:
        found = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    state = {
        "letters.weight": found["enc_emb"],
        "phonemes.weight": found["dec_emb"],
        "output.weight": found["fc_w"],
        "output.bias": found["fc_b"],
    }
    for short, long in RECURRENT.items():
        state[f"reader.{long}_l0"] = found[f"enc_{short}"]
        state[f"writer.{long}"] = found[f"dec_{short}"]
    model.load_state_dict(state)
    return model.eval()


def batches(chosen: list[str]) -> list[Tensor]:
    """Letters (N, length), one length a batch, so that nothing is padded."""
    spelt = [[ord(letter) - ord("a") + 3 for letter in word] + [END_OF_WORD] for word in chosen]
    return by_length(spelt, 256)


def spell(model: nn.Module, data: list[Tensor]) -> Tensor:
    """Phonemes (words, 20) in the batches' order; after a word's end, its mark."""
    with torch.inference_mode():
        return torch.cat([model(letters).argmax(2) for letters in data])


def compare(dense: Tensor, pruned: Tensor) -> dict[str, float]:
    """Share of words spelt alike, and of phonemes that stand in the same place."""
    same = dense == pruned
    heard = (dense != END) | (pruned != END)
    return {
        "words": float(same.all(1).float().mean()),
        "phonemes": float(same[heard].float().mean()),
    }


def load(packages: Path, calibration: int = 2048, held_out: int = 1024) -> Network:
    """g2p-en; its embeddings are left alone.

    Raises FileNotFoundError, which says what to install, where the weights are missing.
    """
    model = load_model(package_file(packages, REQUIREMENT, WEIGHTS))
    chosen, apart = words()
    data = batches(apart[:held_out])
    dense = spell(model, data)
    return Network(
        name="g2p-en",
        model=model,
        calibration=batches(chosen[:calibration]),
        score=lambda pruned: compare(dense, spell(pruned, data)),
        data=f"{min(calibration, len(chosen))} words to calibrate on and {len(dense)} others",
        ignore=["letters", "phonemes"],
    )
