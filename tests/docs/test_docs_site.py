"""README.md and docs/ as a site: links are valid in the repository, and mkdocs builds all pages strictly."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


class Html(HTMLParser):
    """Ids of a page, and what it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(package, reason="the site needs pip install 'avssl[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    # Material's own notice about a version of mkdocs to come is no warning of the build.
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_relative_links_exist_in_the_repository(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_link_and_anchor_of_the_site_is_valid(site: Path) -> None:
    pages = {path: Html(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > len(PAGES)
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists() or (parts.fragment and target in pages and parts.fragment not in pages[target].ids):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken


def test_no_row_of_a_table_is_shown_as_text(site: Path) -> None:
    pages = [path for path in site.glob("*.html") if re.search(r"<p>\s*\|", path.read_text(encoding="utf-8"))]
    assert not pages


def test_the_site_has_the_readme_and_the_sources_that_pages_link_to(site: Path) -> None:
    start = (site / "index.html").read_text(encoding="utf-8")
    assert "Self-supervised audio-visual pretraining" in start and 'src="retrieval.png"' in start
    engine = (site / "code" / "avssl" / "training" / "engine.py.html").read_text(encoding="utf-8")
    concepts = (site / "concepts.html").read_text(encoding="utf-8")
    assert "code/avssl/training/engine.py.html" in concepts and "def step(" in re.sub(r"<[^>]+>", "", engine)
    api = (site / "api.html").read_text(encoding="utf-8")
    for name in ("avssl.api.pretrain", "mast.create_model", "avssl.objectives.Objective", "avssl.tracking.Tracker"):
        assert f'id="{name}"' in api, name
    prose = re.sub(r"<pre.*?</pre>", "", api, flags=re.DOTALL)
    assert "Embeds any media" in prose and not re.search(r":(func|class|meth|mod):|&gt;&gt;&gt;|::</p>", prose)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 500
