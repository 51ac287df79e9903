"""Names of embeddings: a file does not tell one from the weight of a linear layer."""

from collections.abc import Iterable

from spectral_engine._util.globs import matches

EMBEDDINGS = ("*embed*", "*wte.weight", "*wpe.weight")
#: Why a weight of such a name is only touched where `targets` names it.
LOOKS_LIKE_ONE = "looks like an embedding"


def looks_like_embedding(names: Iterable[str]) -> bool:
    """Whether one of a weight's names is that of an embedding."""
    return any(matches(pattern, [name.lower()]) for name in names for pattern in EMBEDDINGS)
