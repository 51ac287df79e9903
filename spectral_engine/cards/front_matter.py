"""A model card's text: metadata in YAML between two lines of ---, then Markdown.

A card is extended and never rewritten: entries that are not ours stay as they are. So no YAML is
parsed; a top-level entry is a line that begins with its key, and all lines up to the next such.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

FENCE = "---"
_KEY = re.compile(r"^([A-Za-z_][\w-]*)\s*:")
#: What YAML does not read as text.
_WORDS = {"true", "false", "yes", "no", "on", "off", "y", "n", "null"}


class Card(NamedTuple):
    """The lines of the metadata, none where there is none, and the text after it."""

    front: list[str]
    body: str


def read_card(text: str) -> Card:
    """The two parts of a card; without a closing fence all of it is text.

    >>> read_card("---\\nlicense: mit\\n---\\n# Title\\n")
    Card(front=['license: mit'], body='# Title\\n')
    """
    lines = text.removeprefix("\ufeff").split("\n")
    if lines[0].rstrip() == FENCE:
        for index, line in enumerate(lines[1:], 1):
            if line.rstrip() == FENCE:
                return Card(
                    [one.rstrip("\r") for one in lines[1:index]], "\n".join(lines[index + 1 :])
                )
    return Card([], text)


def card_text(card: Card) -> str:
    """The opposite of `read_card`."""
    front = "\n".join([FENCE, *card.front, FENCE]) + "\n" if card.front else ""
    return front + card.body


def with_entry(front: Sequence[str], key: str, value: Any, *, replace: bool) -> list[str]:
    """The metadata with an entry, in the place of one that is there only if `replace`.

    >>> with_entry(["license: mit"], "base_model", "org/name", replace=False)
    ['license: mit', 'base_model: "org/name"']
    """
    start, end = _place_of(front, key)
    if start < end and not replace:
        return [*front]
    return [*front[:start], *_yaml({key: value}), *front[end:]]


def with_tags(front: Sequence[str], tags: Sequence[str]) -> list[str]:
    """The metadata with these tags beside those that are there; tags in another form stay alone.

    >>> with_tags(["tags:", "- chat"], ["pruned"])
    ['tags:', '- chat', '- pruned']
    """
    start, end = _place_of(front, "tags")
    if start == end:
        return [*front, "tags:", *(f"- {tag}" for tag in tags)]
    entry = [*front[start:end]]
    if entry[0].split(":", 1)[1].strip():
        flow = re.fullmatch(r"tags\s*:\s*\[(.*)\]\s*", entry[0])
        if flow is None or len(entry) > 1:
            return [*front]
        had = [one.strip() for one in flow[1].split(",") if one.strip()]
        had += [tag for tag in tags if tag not in {one.strip("\"'") for one in had}]
        return [*front[:start], f"tags: [{', '.join(had)}]", *front[end:]]
    items = [re.match(r"(\s*)- (.*)", line) for line in entry[1:]]
    indent = next((item[1] for item in items if item), "")
    have = {item[2].strip().strip("\"'") for item in items if item}
    new = [f"{indent}- {tag}" for tag in tags if tag not in have]
    return [*front[:start], *entry, *new, *front[end:]]


def with_section(body: str, name: str, text: str) -> str:
    """The text with a section of ours at its end, or in the place of the one that is there.

    >>> with_section("# Title", "pruned", "Half of it.")
    '# Title\\n\\n<!-- pruned -->\\nHalf of it.\\n<!-- /pruned -->\\n'
    """
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    section = f"{first}\n{text}\n{last}"
    before, found, rest = body.partition(first)
    _, closed, after = rest.partition(last)
    if found and closed:
        return before + section + after
    return (body.rstrip() + "\n\n" if body.strip() else "") + section + "\n"


def _place_of(front: Sequence[str], key: str) -> tuple[int, int]:
    """The lines of an entry; both the end where there is none."""
    for start, line in enumerate(front):
        found = _KEY.match(line)
        if found and found[1] == key:
            rest = front[start + 1 :]
            length = next((i for i, one in enumerate(rest) if _KEY.match(one)), len(rest))
            return start, start + 1 + length
    return len(front), len(front)


def _yaml(value: Mapping[str, Any], indent: str = "") -> list[str]:
    """Plain values as YAML: nested mappings, scalars and lists as JSON, which YAML reads."""
    lines = []
    for key, one in value.items():
        plain = _KEY.match(f"{key}:") and key.lower() not in _WORDS
        name = key if plain else _json(key)
        if isinstance(one, Mapping) and one:
            lines += [f"{indent}{name}:", *_yaml(one, f"{indent}  ")]
        else:
            lines.append(f"{indent}{name}: {_json(one)}")
    return lines


def _json(value: Any) -> str:
    """JSON on one line for YAML too, which has more line ends and knows no pairs of surrogates."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(one if one.isprintable() else f"\\U{ord(one):08x}" for one in text)
