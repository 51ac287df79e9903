"""Recipes as plain values and as TOML.

    method = "magnitude"                      # a name, or a table with a name:
    budget = {name = "erk", sparsity = 0.9, floor = 0.02, group = "row"}
    refit = {name = "sparsegpt", bias_correction = true}
    reconstruction = {steps = 64}

    low_rank = {rank = 8}

    [select]
    targets = ["Linear"]
    ignore = ["lm_head"]

Several recipes are `[[recipe]]` tables of the same keys. What is at its default is left out.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from spectral_engine.checkpoints.atomic import replacing_file
from spectral_engine.recipe.budgets import BUDGETS, Budget
from spectral_engine.recipe.low_rank import LowRank
from spectral_engine.recipe.methods import METHODS, Method
from spectral_engine.recipe.reconstruction import Reconstruction
from spectral_engine.recipe.refits import REFITS, Refit
from spectral_engine.recipe.select import Select

#: The parts of a recipe that have a name, and their classes.
_NAMED: dict[str, Mapping[str, type]] = {"method": METHODS, "budget": BUDGETS, "refit": REFITS}
#: The parts that have none: there is one class of each.
_NAMELESS: dict[str, type] = {
    "select": Select, "low_rank": LowRank, "reconstruction": Reconstruction,
}  # fmt: skip
_KEYS = (*_NAMED, *_NAMELESS, "calibrated", "fallback")


def part_to_plain(
    part: Method | Budget | Refit | Select | LowRank | Reconstruction,
) -> dict[str, Any]:
    """A part of a recipe as plain values, without those at their default."""
    found: dict[str, Any] = (
        {} if isinstance(part, Select | LowRank | Reconstruction) else {"name": part.name}
    )
    for each in fields(part):  # type: ignore[arg-type]
        value = getattr(part, each.name)
        if each.init and value != each.default:
            found[each.name] = _plain(value)
    if isinstance(part, Select) and part.split is not None:  # as lists: TOML would reorder tables
        found["split"] = {pattern: [_plain(one) for one in parts] for pattern, parts in part.split}
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Budget):
        return part_to_plain(value)
    return list(value) if isinstance(value, tuple) else value


def from_plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Recipe` from plain values.

    Raises:
        TypeError, ValueError: name the key, as in "budget.floor".
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"recipe: expected a table; got {values!r}")
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key not in _KEYS:
            raise ValueError(f"{key}: expected one of {', '.join(_KEYS)}; got another key")
        if key in _NAMED:
            found[key] = _named(key, value, _NAMED[key])
        elif key in _NAMELESS:
            found[key] = _made(key, _NAMELESS[key], value)
        else:
            found[key] = value
    return found


def _named(key: str, value: Any, classes: Mapping[str, type]) -> Any:
    """A part from its name, or from a table that has one."""
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        raise TypeError(f"{key}: expected a name, or a table with a name; got {value!r}")
    name = table["name"]
    if name not in classes:
        raise ValueError(f"{key}: expected one of {', '.join(classes)}; got {name!r}")
    rest = {k: v for k, v in table.items() if k != "name"}
    if "shared" in rest:
        rest["shared"] = _named(f"{key}.shared", rest["shared"], BUDGETS)
    return _made(key, classes[name], rest)


def _made(key: str, kind: type, values: Any) -> Any:
    """A part from its arguments; errors name the key."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{key}: expected a table; got {values!r}")
    known = [part.name for part in fields(kind) if part.init]
    for name in values:
        if name not in known:
            expected = f"one of {', '.join(known)}" if known else "nothing more"
            raise ValueError(f"{key}.{name}: expected {expected}; got another key")
    for part in fields(kind):
        if part.init and part.default is MISSING and part.name not in values:
            raise ValueError(f"{key}.{part.name}: expected a value; got none")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{key}.{error}") from error


def read(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The recipes of a TOML file as plain values, each with where it stands, for messages.

    Raises:
        ValueError: no TOML, or none in it. OSError: it cannot be read.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a recipe in TOML; {error}") from error
    several = found.get("recipe")
    if several is None:
        if not found:
            raise ValueError(f"{path}: expected a recipe; got an empty file")
        yield "", found
        return
    if not isinstance(several, list) or len(found) != 1 or not several:
        raise ValueError(f"{path}: recipe: expected [[recipe]] tables and nothing beside them")
    for index, values in enumerate(several):
        yield f"recipe {index + 1}: ", values


def write(recipes: Sequence[Mapping[str, Any]], path: Path, *, force: bool) -> None:
    """Write recipes of plain values as TOML, whole or not at all."""
    import tomli_w  # noqa: PLC0415 (only who saves a recipe needs it)

    content = recipes[0] if len(recipes) == 1 else {"recipe": list(recipes)}
    with replacing_file(path, force=force) as file:
        file.write(tomli_w.dumps(content).encode())
