"""Recipes under the names people use, and what `prune` takes for a recipe.

| name          | recipe                                                                          |
|---------------|---------------------------------------------------------------------------------|
| magnitude     | the largest |A|, the same share of every layer                                  |
| randomized    | drawn by p ~ |A|, unbiased                                                      |
| principal     | by the truncated SVD, mixed with |A|                                            |
| aligned       | by the first-order change of the leading singular values                        |
| spectral      | without data: one threshold on |A| / ||A||_F, refitted to the leading subspaces |
| wanda         | with inputs: |A_ij| times the root mean square of input j, by row (2306.11695)  |
| least-squares | "wanda", then fitted to the dense outputs                                       |
| sparsegpt     | with inputs: mask and values column after column (arXiv 2301.00774)             |
| alps          | with inputs: a mask by ADMM, then least squares (arXiv 2406.07831)              |
| auto          | with inputs "alps" by row, layers sharing by ERK, blocks of one form alike, and |
|               | then fitted to the dense model for a few steps; without inputs see below        |
| best          | with inputs: as "auto", and trained for longer towards the dense model          |

"auto" with inputs is what docs/quality.md speaks for: "alps" with ERK was ahead of "uniform" on
LeNet, g2p and CREPE by up to .09, and on MiniLM at most .003 behind. On a language model it is
behind: the blocks are all of one form there, and ERK takes from the wide layers of each to leave
the narrow ones nearly dense. Without inputs `prune` of a model simulates some, and takes of several
recipes the one whose outputs err least on them (`pruning/without_data.py`); elsewhere "auto" is
"magnitude", since all else that gains anything without data was below it on some network.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spectral_engine._util.checks import boolean, one_of
from spectral_engine.recipe.budgets import ERK, Spectral, Uniform
from spectral_engine.recipe.methods import Aligned, Magnitude, Method, Principal, Randomized
from spectral_engine.recipe.recipe import Recipe, load_recipes
from spectral_engine.recipe.reconstruction import Reconstruction
from spectral_engine.recipe.refits import ALPS, LeastSquares, SparseGPT, SpectralRefit

PRESETS: dict[str, Recipe] = {
    "magnitude": Recipe(Magnitude()),
    "randomized": Recipe(Randomized()),
    "principal": Recipe(Principal()),
    "aligned": Recipe(Aligned()),
    "spectral": Recipe(Magnitude(), budget=Spectral(), refit=SpectralRefit()),
    "wanda": Recipe(Magnitude(), budget=Uniform(group="row"), calibrated=True),
    "least-squares": Recipe(Magnitude(), budget=Uniform(group="row"), refit=LeastSquares()),
    "sparsegpt": Recipe(Magnitude(), refit=SparseGPT()),
    "alps": Recipe(Magnitude(), refit=ALPS()),
    "auto": Recipe(Magnitude()),
    "best": Recipe(
        Magnitude(),
        budget=ERK(group="row"),
        refit=ALPS(),
        reconstruction=Reconstruction(steps=64, whole=128),
        fallback=Recipe(Magnitude()),
    ),
}
#: What "auto" is where there are calibration inputs.
CALIBRATED_AUTO = replace(PRESETS["best"], reconstruction=Reconstruction(steps=64))
#: Where blocks of one form hold most of a model, as those of a language model do, they share alike,
#: and training the whole gains more than fitting each block, at the same price a step.
_OF_BLOCKS_ALIKE = {
    "auto": replace(
        CALIBRATED_AUTO,
        budget=Uniform(group="row"), reconstruction=Reconstruction(steps=0, whole=16),
    ),
    "best": replace(
        CALIBRATED_AUTO,
        budget=Uniform(group="row"), reconstruction=Reconstruction(steps=0, whole=128),
    ),
}  # fmt: skip


def preset(name: str, sparsity: float | None = None, *, calibrated: bool = False) -> Recipe:
    """The recipe of that name.

    Args:
        name: one of the table above.
        sparsity: of its budget; None leaves it at 0.9.
        calibrated: whether there are calibration inputs, which decides what "auto" is.

    Returns:
        The recipe, which can be changed with `dataclasses.replace`.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.

    Example:
        >>> preset("spectral", 0.8)
        Recipe(Magnitude(), budget=Spectral(0.8), refit=SpectralRefit())
    """
    return _preset("name", name, boolean("calibrated", calibrated)).at(sparsity)


def _preset(argument: str, name: Any, calibrated: bool) -> Recipe:
    one_of(argument, name, PRESETS)
    return CALIBRATED_AUTO if name == "auto" and calibrated else PRESETS[name]


def as_recipe(
    value: Any,
    sparsity: float | None = None,
    *,
    calibrated: bool = False,
    alike: bool = False,
    reconstructs: bool = True,
) -> Recipe:
    """What a user gives for a recipe, as one.

    Args:
        value: a `Recipe`, a preset's name, or a method, which stands for a recipe of it alone.
        sparsity: replaces that of the recipe's budget; None leaves it.
        calibrated: whether there are calibration inputs.
        alike: whether the model is made of blocks of one form, which decides how "auto" and
            "best" share their budget.
        reconstructs: whether blocks can be reconstructed where it is carried out; elsewhere "auto"
            leaves it out.

    Raises:
        TypeError, ValueError: none of these; or a recipe that needs inputs where there are none.
    """
    if isinstance(value, Method):
        value = Recipe(value)
    if isinstance(value, Recipe):
        found = value.at(sparsity)
    elif isinstance(value, str):
        found = _preset("recipe", value, calibrated)
        if found.reconstruction is not None:
            found = _OF_BLOCKS_ALIKE[value] if alike else found
            if value == "auto" and not reconstructs:
                found = replace(found, reconstruction=None)
        found = found.at(sparsity)
    else:
        raise TypeError(f"recipe: expected a Recipe, a method or a preset's name; got {value!r}")
    if found.needs_inputs and not calibrated:
        name = f"{value!r}" if isinstance(value, str) else f"{found!r}"
        raise ValueError(
            f"calibration: {name} needs calibration inputs; got none "
            "(calibration=batches, or --calibration FILE)"
        )
    return found


def as_recipes(
    value: Any,
    sparsity: float | None = None,
    *,
    calibrated: bool = False,
    alike: bool = False,
    reconstructs: bool = True,
) -> tuple[Recipe, ...]:
    """`as_recipe` of one value, or of each of a list; of several the first that selects a weight
    is that weight's.

    Raises:
        TypeError, ValueError: as `as_recipe`; an empty list.
    """
    several = isinstance(value, Sequence) and not isinstance(value, str)
    values = list(value) if several else [value]
    if not values:
        raise ValueError("recipe: expected at least one; got an empty list")
    return tuple(
        as_recipe(one, sparsity, calibrated=calibrated, alike=alike, reconstructs=reconstructs)
        for one in values
    )


def recipe_of_text(text: str) -> str | list[Recipe]:
    """What a command line gives for a recipe: a preset's name, or the recipes of a TOML file."""
    if text in PRESETS:
        return text
    if text.endswith(".toml") or os.path.exists(text):
        return load_recipes(Path(text))
    raise ValueError(f"recipe: expected one of {', '.join(PRESETS)}, or a .toml file; got {text!r}")
