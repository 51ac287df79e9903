"""WordPiece as BERT's uncased models use it: text to the numbers of its vocabulary.

Lower case, accents stripped, split at spaces and around punctuation; each word is then cut greedily
into the longest pieces that the vocabulary holds (Devlin et al., arXiv 1810.04805; Wu et al., arXiv
1609.08144).
"""

import unicodedata
from collections.abc import Iterator
from pathlib import Path

LONGEST_WORD = 100


class WordPiece:
    """The tokenizer of a vocabulary, one piece a line, "##" before those inside a word."""

    def __init__(self, vocabulary: Path) -> None:
        lines = vocabulary.read_text(encoding="utf-8").splitlines()
        self.ids = {piece: number for number, piece in enumerate(lines)}

    def encode(self, text: str, longest: int = 128) -> list[int]:
        """[CLS], the pieces of the text, [SEP]; at most `longest` in all."""
        pieces = [self.ids[piece] for word in _words(text) for piece in self._pieces(word)]
        return [self.ids["[CLS]"], *pieces[: longest - 2], self.ids["[SEP]"]]

    def _pieces(self, word: str) -> list[str]:
        pieces: list[str] = []
        start = 0
        while start < len(word) <= LONGEST_WORD:
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if prefix + word[start:end] in self.ids), None)
            if end is None:
                return ["[UNK]"]
            pieces.append(prefix + word[start:end])
            start = end
        return pieces or ["[UNK]"]


def _words(text: str) -> Iterator[str]:
    kept = (_clean(character) for character in unicodedata.normalize("NFD", text.lower()))
    yield from "".join(kept).split()


def _clean(character: str) -> str:
    """A character as it is read: nothing, a space, itself, or itself as a word of its own."""
    category = unicodedata.category(character)
    if character in "\t\n\r" or category == "Zs":
        return " "
    if category == "Mn" or category[0] == "C" or character == "\ufffd":
        return ""
    alone = category[0] == "P" or (character.isascii() and not character.isalnum())
    return f" {character} " if alone or "\u4e00" <= character <= "\u9fff" else character
