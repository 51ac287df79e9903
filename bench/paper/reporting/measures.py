"""How far a pruned network's spectra are from those of the dense one."""

import copy
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import spectral_engine as se

#: Leading singular values that are compared.
LEADING = 64
#: The three errors, as summaries and tables name them.
ERRORS = ("spectral", "frobenius", "values")

Spectra = Mapping[str, NDArray[np.float64]]


def spectra_of(model: nn.Module) -> Spectra:
    """All singular values of every weight, by name."""
    return {row.name: row.known for row in se.spectra(model, LEADING, progress=False)}


def errors_of(
    model: nn.Module, dense: nn.Module, known: Spectra, names: Iterable[str]
) -> dict[str, float]:
    """The `ERRORS` of a pruned model, the mean over the matrices of its weights `names`.

    `known` are the spectra of dense. A weight that is several matrices, as that of an LSTM's gates,
    has a name for each: weight[gate].

    spectral: ||A - S||_2 / ||A||_2. frobenius: ||A - S||_F / ||A||_F. values: mean over the leading
    values of |sigma_i(S) - sigma_i(A)| / sigma_i(A).
    """
    difference = copy.deepcopy(model)
    with torch.no_grad():
        for one, other in zip(difference.parameters(), dense.parameters(), strict=True):
            one.sub_(other)
    lost, after = spectra_of(difference), spectra_of(model)
    weights = set(names)
    found = []
    for name, before in known.items():
        if name.partition("[")[0] not in weights:
            continue
        leading = before[:LEADING] > 0.0
        change = np.abs(after[name] - before)[:LEADING][leading] / before[:LEADING][leading]
        found.append(
            (
                lost[name][0] / before[0],
                np.linalg.norm(lost[name]) / np.linalg.norm(before),
                change.mean(),
            )
        )
    return {key: float(value) for key, value in zip(ERRORS, np.mean(found, axis=0), strict=True)}
