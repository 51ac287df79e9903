"""A recipe: everything that decides how weights are pruned, as one value."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from spectral_kernels import NM, Blocks

from spectral_engine._util.checks import boolean, file_path, shown
from spectral_engine.recipe.budgets import Budget, Uniform
from spectral_engine.recipe.low_rank import LowRank
from spectral_engine.recipe.methods import Magnitude, Method
from spectral_engine.recipe.reconstruction import Reconstruction
from spectral_engine.recipe.refits import BiasCorrection, Refit
from spectral_engine.recipe.select import Select
from spectral_engine.recipe.text import from_plain, part_to_plain, read, write

#: The laws by which N of every M columns are drawn.
_PATTERN_LAWS = ("threshold", "l1", "quantised", "l2")


@dataclass(frozen=True)
class Recipe:
    """How weights are pruned: by which method, to which budget, with which refit, and which ones.

    Recipes are values: checked when they are made, equal if their parts are, printed as one line,
    and saved to TOML files.

    Args:
        method: `Magnitude()`, `Randomized(...)`, `Principal(...)` or `Aligned(...)`.
        budget: `Uniform(...)`, `Global(...)`, `ERK(...)`, `Spectral(...)`, `MaxError(...)` or
            `Pattern(...)`.
        refit: None, or `Scale()`, `SpectralRefit()`, `LeastSquares()`, `SparseGPT()`, `ALPS()` or
            `BiasCorrection()`.
        low_rank: `LowRank(...)` keeps leading directions as two thin factors beside the sparse
            part, in linear layers and convolutions; None for none.
        reconstruction: None, or `Reconstruction(...)`: once all layers are pruned, blocks that hold
            some of them are fitted to what they gave in the dense model. Of several recipes the
            first that has one decides for the model.
        select: which weights it is for.
        calibrated: whether to refuse to run without calibration inputs, as a refit that needs them
            does anyway.
        fallback: what is done to a layer whose inputs cannot be seen, with its share of this
            recipe's budget; None for this recipe without what needs inputs.

    Raises:
        TypeError, ValueError: name the part, what was expected and what came.

    Example:
        >>> import spectral_engine as se
        >>> se.Recipe(se.Magnitude(), budget=se.ERK(0.9, floor=0.02), refit=se.SpectralRefit())
        Recipe(Magnitude(), budget=ERK(0.9, floor=0.02), refit=SpectralRefit())
    """

    method: Method = field(default_factory=Magnitude)
    budget: Budget = field(default_factory=Uniform, kw_only=True)
    refit: Refit | None = field(default=None, kw_only=True)
    low_rank: LowRank | None = field(default=None, kw_only=True)
    reconstruction: Reconstruction | None = field(default=None, kw_only=True)
    select: Select = field(default_factory=Select, kw_only=True)
    calibrated: bool = field(default=False, kw_only=True)
    fallback: "Recipe | None" = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _require("method", self.method, Method, "a method such as Magnitude()")
        _require("budget", self.budget, Budget, "a budget such as Uniform(0.9)")
        if self.refit is not None:
            _require("refit", self.refit, Refit, "None or a refit such as LeastSquares()")
        if self.low_rank is not None:
            _require("low_rank", self.low_rank, LowRank, "None or LowRank(...)")
        if self.reconstruction is not None:
            _require(
                "reconstruction", self.reconstruction, Reconstruction,
                "None or Reconstruction(...)",
            )  # fmt: skip
        _require("select", self.select, Select, "Select(...)")
        boolean("calibrated", self.calibrated)
        if self.fallback is not None:
            _require("fallback", self.fallback, Recipe, "None or a Recipe")
            if self.fallback.needs_inputs:
                raise ValueError(
                    f"fallback: expected a recipe that needs no inputs; got {self.fallback!r}"
                )
        pattern, law = self.budget.pattern, self.method.law
        if isinstance(pattern, Blocks) and self.method.draws:
            raise ValueError(f"budget: blocks are kept, not drawn; got method {self.method!r}")
        if isinstance(pattern, NM) and law not in _PATTERN_LAWS:
            raise ValueError(
                f"budget: N of M is drawn by law 'l1', 'quantised' or 'l2', or kept; got {law!r}"
            )
        if isinstance(pattern, NM) and self.low_rank is not None:
            raise ValueError(
                "low_rank: N of M fixes how many entries are kept, and leaves none for factors; "
                f"got {self.low_rank!r}"
            )

    @property
    def needs_inputs(self) -> bool:
        """Whether it cannot run without calibration inputs."""
        refit = self.refit
        return (
            self.calibrated
            or self.reconstruction is not None
            or (refit is not None and (refit.needs_inputs or refit.bias_correction))
        )

    @property
    def bias_correction(self) -> bool:
        """Whether biases are corrected."""
        return self.refit is not None and self.refit.bias_correction

    @property
    def refit_chooses(self) -> bool:
        """Whether the refit chooses the mask too: where nothing but the magnitude would."""
        return (
            self.refit is not None
            and self.refit.chooses_mask
            and isinstance(self.method, Magnitude)
        )

    def at(self, sparsity: float | None) -> Self:
        """The same recipe with another sparsity; None changes nothing.

        Raises:
            TypeError, ValueError: no fraction in [0, 1), or a budget that decides it otherwise.
        """
        return self if sparsity is None else replace(self, budget=self.budget.at(sparsity))

    def without_inputs(self) -> "Recipe":
        """What is done to a layer whose inputs are not known."""
        if self.fallback is not None:
            return self.fallback
        refit = self.refit
        if refit is None or not (refit.needs_inputs or refit.bias_correction):
            return self
        kept = None if refit.needs_inputs else replace(refit, bias_correction=False)
        return replace(self, refit=kept)

    def without_low_rank(self) -> "Recipe":
        """The same recipe for a layer that cannot hold factors."""
        fallback = None if self.fallback is None else self.fallback.without_low_rank()
        return replace(self, low_rank=None, fallback=fallback)

    def without_bias_correction(self) -> Self:
        """The same recipe for a layer without a bias of its own."""
        if self.refit is None or not self.refit.bias_correction:
            return self
        alone = isinstance(self.refit, BiasCorrection)
        return replace(self, refit=None if alone else replace(self.refit, bias_correction=False))

    # As text

    def to_dict(self) -> dict[str, Any]:
        """Plain values, those that differ from the default; `from_dict` reads them."""
        found = {"method": part_to_plain(self.method), "budget": part_to_plain(self.budget)}
        if self.refit is not None:
            found["refit"] = part_to_plain(self.refit)
        if self.low_rank is not None:
            found["low_rank"] = part_to_plain(self.low_rank)
        if self.reconstruction is not None:
            found["reconstruction"] = part_to_plain(self.reconstruction)
        if self.select != Select():
            found["select"] = part_to_plain(self.select)
        if self.fallback is not None:
            found["fallback"] = self.fallback.to_dict()
        return found | ({"calibrated": True} if self.calibrated else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """The recipe that `to_dict` wrote.

        Raises:
            TypeError, ValueError: name the key, as in "budget.floor".
        """
        found = from_plain(values)
        if "fallback" in found:
            try:
                found["fallback"] = cls.from_dict(found["fallback"])
            except (TypeError, ValueError) as error:
                raise type(error)(f"fallback.{error}") from error
        return cls(**found)

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write a TOML file, whole or not at all; an existing one only with `force`."""
        save_recipes([self], path, force=force)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Recipe":
        """The recipe of a TOML file.

        Raises:
            TypeError, ValueError, OSError: name the file and the key; also where the file holds
                several, which `load_recipes` reads.
        """
        found = load_recipes(path)
        if len(found) != 1:
            raise ValueError(
                f"{path}: expected one recipe; got {len(found)}, which se.load_recipes reads"
            )
        return found[0]

    def _repr_html_(self) -> str:
        from spectral_engine.pages.html import definitions  # noqa: PLC0415  (jinja2)

        shown = [(part.name, getattr(self, part.name)) for part in fields(self)]
        named = [(name, value) for name, value in shown if value not in (None, False, Select())]
        return definitions(
            "Recipe", [(name, repr(value), first_line(value)) for name, value in named]
        )

    def __repr__(self) -> str:
        parts = [repr(self.method)]
        for part in fields(self)[1:]:
            value = getattr(self, part.name)
            if value != _default(part):
                parts.append(f"{part.name}={value!r}")
        return f"Recipe({', '.join(parts)})"


def load_recipes(path: str | os.PathLike[str]) -> list[Recipe]:
    """The recipes of a TOML file: one at its top level, or several as `[[recipe]]` tables.

    Args:
        path: a file that `Recipe.save` or `save_recipes` wrote, or written by hand.

    Returns:
        At least one; of several, a weight is pruned by the first that selects it.

    Raises:
        TypeError, ValueError, OSError: name the file and the key.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "recipe.toml")
        >>> _ = path.write_text('method = "magnitude"\\nbudget = {name = "erk", sparsity = 0.9}')
        >>> load_recipes(path)
        [Recipe(Magnitude(), budget=ERK(0.9))]
    """
    source = file_path("path", path)
    found = []
    for where, values in read(source):
        try:
            found.append(Recipe.from_dict(values))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{source}: {where}{error}") from error
    return found


def save_recipes(
    recipes: Sequence[Recipe], path: str | os.PathLike[str], *, force: bool = False
) -> None:
    """Write recipes to a TOML file, whole or not at all.

    Args:
        recipes: at least one.
        path: the file to write.
        force: replace an existing file.

    Raises:
        TypeError, OSError: name what was wrong.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "recipes.toml")
        >>> save_recipes([Recipe(), Recipe(budget=Uniform(0.5))], path)
        >>> load_recipes(path)
        [Recipe(Magnitude()), Recipe(Magnitude(), budget=Uniform(0.5))]
    """
    if not isinstance(recipes, list | tuple):
        raise TypeError(f"recipes: expected a list of recipes; got {shown(recipes)}")
    if not recipes:
        raise ValueError("recipes: expected at least one; got none")
    for recipe in recipes:
        _require("recipes", recipe, Recipe, "recipes")
    plain = [recipe.to_dict() for recipe in recipes]
    write(plain, file_path("path", path), force=boolean("force", force))


def first_line(value: Any) -> str:
    """What the class of a part says it is, in a line; nothing for plain values."""
    said = type(value).__doc__ if not isinstance(value, bool | str) else None
    return (said or "").partition("\n")[0]


def _require(name: str, value: Any, kind: type, expected: str) -> None:
    if not isinstance(value, kind) or (kind in (Method, Budget, Refit) and type(value) is kind):
        raise TypeError(f"{name}: expected {expected}; got {value!r}")


def _default(part: Any) -> Any:
    return part.default_factory() if callable(part.default_factory) else part.default
