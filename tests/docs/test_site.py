"""The documentation site: built without a warning, whole, and with every link inside it good."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import spectral_kernels
from spectral_kernels import spectra

import spectral_engine as se
from tests.support.pages import REPOSITORY

API = REPOSITORY / "docs" / "api"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` builds it."""
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", folder],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


class Links(HTMLParser):
    """Where a page leads to, and where one can land on it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {""}
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "a" and found.get("href"):
            self.links.append(found["href"] or "")
        if tag == "img":
            self.links.append(found["src"] or "")
        self.anchors.add(found.get("id") or "")


def test_links_inside_the_site_are_good(site):
    """Catches a heading that was renamed, and a figure that was not copied."""
    pages = {path: Links(path) for path in site.rglob("*.html")}
    checked = 0
    for page, found in pages.items():
        for link in found.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert target.exists(), f"{page.name}: {link}"
            if target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{page.name}: {link}"
            checked += 1
    assert checked > 500


def test_nothing_is_fetched_from_elsewhere(site):
    """Catches a font, script or style that a reader's browser would ask another host for."""
    for page in site.rglob("*.html"):
        text = page.read_text()
        fetched = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?://[^\"]+)", text)
        assert fetched == [], page.name


def test_the_api_pages_name_every_public_object():
    """Catches a public function that the documentation does not know, and one that is gone."""
    named = set(re.findall(r"^\.\. auto\w+:: (\S+)$", _all_of(API), re.MULTILINE))
    public = {f"spectral_engine.{name}" for name in se.__all__} - {
        "spectral_engine.PRESETS", "spectral_engine.__version__",
    }  # fmt: skip
    for module in (spectral_kernels, spectra):
        things = {name: getattr(module, name) for name in module.__all__}
        public |= {
            f"{module.__name__}.{name}"
            for name, thing in things.items()
            if getattr(thing, "__module__", "").startswith("spectral_kernels")
        }
    assert named == public


def _all_of(folder: Path) -> str:
    return "\n".join(page.read_text() for page in folder.glob("*.md"))
