"""The pages of docs/: their code runs, their links lead somewhere."""

import re

import pytest

from tests.support.pages import PAGES, REPOSITORY, Reader, blocks_of, write_workspace

WITH_CODE = [page for page in PAGES if blocks_of(page) and page.name != "README.md"]
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?!https?://)([^)#\s]+)(#[^)\s]+)?\)")


def name_of(page) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_code_blocks_run_as_they_stand(page, tmp_path, monkeypatch, capsys):
    """Catches a page that a change of the code has left behind."""
    monkeypatch.chdir(tmp_path)
    write_workspace(tmp_path)
    reader = Reader()
    for block in blocks_of(page):
        reader.run(block, page)
    if reader.skipped:
        pytest.skip(f"the rest ran; not installed: {', '.join(sorted({*reader.skipped}))}")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page):
    """Catches a link to a page that was moved, in README and in the pages as they lie in docs/."""
    for path, _ in _LINK.findall(page.read_text()):
        assert (page.parent / path).exists(), path
