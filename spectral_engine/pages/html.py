"""A sheet as a page that needs nothing else, and as a fragment for a notebook."""

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from spectral_engine._util.text import natural
from spectral_engine.pages.curves import HEIGHT, WIDTH, curves_of
from spectral_engine.pages.sheet import GENERATOR, Cell, Column, Row, Sheet

#: Rows that a notebook shows before it says how many more there are.
NOTEBOOK_ROWS = 30
#: Names of one list that are there at once; a page holds all, folded.
NAMES_SHOWN = 6


def page(sheet: Sheet) -> str:
    """The whole page; every text in it is escaped, and only its own script may run."""
    script = _source("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _rendered(
        "page.html", sheet=sheet, rows=_rows(sheet), total=_total(sheet), script=script,
        digest=digest, style=_source("page.css"), generator=GENERATOR, most=NAMES_SHOWN,
    )  # fmt: skip


def fragment(sheet: Sheet) -> str:
    """What a notebook shows: no script, and the first rows only."""
    return _rendered(
        "fragment.html", sheet=sheet, rows=_rows(sheet)[:NOTEBOOK_ROWS],
        left=max(0, len(sheet.rows) - NOTEBOOK_ROWS),
        total=_total(sheet), most=NAMES_SHOWN, style=_source("fragment.css"),
    )  # fmt: skip


def definitions(title: str, lines: Sequence[tuple[str, str, str]]) -> str:
    """What a notebook shows of a value with parts: the name of each, its value, and what it is."""
    return _rendered("definitions.html", title=title, lines=lines)


def _rows(sheet: Sheet) -> list[dict[str, Any]]:
    """What the template shows of each row; `order` is its place among the names."""
    order = sorted(range(len(sheet.rows)), key=lambda index: natural(sheet.rows[index].name))
    places = {index: place for place, index in enumerate(order)}
    return [
        {
            "name": row.name,
            "parts": _breakable(row.name),
            "order": places[index],
            "cells": _cells(sheet.columns, row),
            "curves": curves_of(row.before, row.after),
            "ends": _ends(row),
        }
        for index, row in enumerate(sheet.rows)
    ]


def _total(sheet: Sheet) -> dict[str, Any] | None:
    if sheet.total is None:
        return None
    return {"name": sheet.total.name, "cells": _cells(sheet.columns, sheet.total)}


def _cells(columns: Any, row: Row) -> list[dict[str, Any]]:
    return [
        {
            "text": cell.text,
            "key": "" if cell.key is None else f"{cell.key:.9g}",
            "share": _share(column, cell),
            "words": column.words,
        }
        for column, cell in zip(columns, row.cells, strict=True)
    ]


def _share(column: Column, cell: Cell) -> str | None:
    """The width of a cell's bar in per cent."""
    if not column.bar or cell.key is None:
        return None
    return f"{100 * min(max(cell.key, 0.0), 1.0):.1f}"


def _ends(row: Row) -> list[tuple[str, str, str]]:
    """The first and the last singular value, before and after."""
    last = max(len(row.before), len(row.after)) - 1

    def value(values: Any, index: int) -> str:
        return f"{values[index]:.4g}" if index < len(values) else "-"

    places = [0, last] if last > 0 else [0]
    return [
        (f"sigma {index + 1}", value(row.before, index), value(row.after, index))
        for index in places
    ]


def _breakable(name: str) -> list[str]:
    """The pieces of a name between which a line may break."""
    return re.findall(r"[^./]*[./]|[^./]+$", name) or [name]


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("spectral_engine.pages"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.globals |= {"box_width": WIDTH, "box_height": HEIGHT}
    return found


def _rendered(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


def _source(name: str) -> str:
    """A file beside the templates as it is: the page's own style or script."""
    environment = _environment()
    if environment.loader is None:  # there always is one
        raise RuntimeError(f"no loader for {name}")
    return environment.loader.get_source(environment, name)[0]
