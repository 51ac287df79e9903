"""The metadata of a model card: extended, with PyYAML as the judge of what is said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectral_engine.cards.front_matter import (
    card_text,
    read_card,
    with_entry,
    with_section,
    with_tags,
)

yaml = pytest.importorskip("yaml")

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-99, 99), TEXT,
    st.floats(-100, 100, allow_subnormal=False).map(lambda value: round(value, 3)),
)  # fmt: skip
KEYS = st.sampled_from(["license", "base_model", "tags", "language", "model-index", "widget"])
PLAIN = st.dictionaries(
    KEYS, st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(TEXT, SCALARS)),
    max_size=4,
)  # fmt: skip


def parsed(front: list[str]) -> dict:
    return yaml.safe_load("\n".join(front)) or {}


@given(PLAIN, st.booleans(), st.dictionaries(TEXT, SCALARS), st.booleans())
def test_an_entry_is_read_back_and_the_others_stay(before, flow, value, replace):
    """Catches values that YAML reads as something else, an entry of the user's that is cut short,
    and one that is replaced unasked."""
    front = []
    for key, one in before.items():
        if flow:
            front.append(
                f"{key}: {yaml.safe_dump([one], default_flow_style=True, width=10**6)[1:-2]}"
            )
        else:
            front += yaml.safe_dump({key: one}, default_flow_style=False).split("\n")[:-1]
    after = parsed(with_entry(front, "base_model", value, replace=replace))
    kept = "base_model" in before and not replace
    assert after.pop("base_model") == (before["base_model"] if kept else value)
    assert after == {key: one for key, one in before.items() if key != "base_model"}


@pytest.mark.parametrize(
    ("front", "tags"),
    [
        ([], ["pruned", "x"]),
        (["license: mit", "tags:", "- chat", "- pruned", "language: en"], ["chat", "pruned", "x"]),
        (["tags:", "  - chat"], ["chat", "pruned", "x"]),
        (["tags: [chat, 'x']"], ["chat", "x", "pruned"]),
        (["tags: []"], ["pruned", "x"]),
        (["tags: chat"], "chat"),
        (["tags: [", "  chat,", "]"], ["chat"]),
    ],
)
def test_tags_are_added_in_the_form_that_is_there(front, tags):
    """Catches tags given twice, and metadata that is no longer YAML."""
    found = with_tags(front, ["pruned", "x"])
    assert parsed(found)["tags"] == tags
    assert with_tags(found, ["pruned", "x"]) == found
    assert parsed(found).get("license") == parsed(front).get("license")


@given(st.text(max_size=40), TEXT, TEXT)
def test_a_section_is_replaced_by_the_next(body, first, second):
    """Catches sections that pile up, or text around them that is lost."""
    once = with_section(body, "pruned", first)
    assert once.startswith(body.rstrip())
    assert with_section(once, "pruned", second) == with_section(body, "pruned", second)
    assert with_section(once, "other", second).startswith(once.rstrip())


@pytest.mark.parametrize(
    "text",
    ["", "# Title\n", "---\nlicense: mit\n---\n# Title\n", "---\nno end\n", "---\n", "text\n---\n"],
)
def test_a_card_is_read_and_written_as_it_was(text):
    """Catches metadata found where there is none, and a card changed by reading."""
    assert card_text(read_card(text)) == text


def test_other_line_ends_and_marks():
    """Catches a card of Windows in which no metadata are found, so that it gets a second head."""
    card = read_card("\ufeff---\r\nlicense: mit\r\n---\r\n# Title\r\n")
    assert card.front == ["license: mit"]
    assert card.body == "# Title\r\n"
