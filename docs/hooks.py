"""What the site has beside docs/: README.md as its first page, two more pages of the root, and the source files that
pages link to. Links that work in the repository are rewritten to these, so that no text is kept twice."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".cff": "yaml", ".cpp": "cpp", ".sbatch": "bash"}
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages that are made here."""
    sources: set[str] = set()
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    for path in [*(ROOT / "docs").glob("*.md"), *(ROOT / name for name in PAGES)]:
        for link in LINK.finditer(path.read_text(encoding="utf-8")):
            target = (path.parent / link[2]).resolve()
            if not target.is_relative_to(ROOT):
                continue
            source = target.relative_to(ROOT).as_posix()
            if target.suffix in LANGUAGES:
                sources.add(source)
            elif target.suffix == ".ipynb" and not files.get_file_from_path(source):
                files.append(File.generated(config, source, abs_src_path=str(target)))
    for source in sorted(sources):
        if not (ROOT / source).is_file():
            raise PluginError(f"a page links to {source}, which is not there")
        code = (ROOT / source).read_text(encoding="utf-8")
        text = f'# {source}\n\n````{LANGUAGES[Path(source).suffix]} linenums="1"\n{code}````\n'
        files.append(File.generated(config, f"code/{source}.md", content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of the repository become links of the site."""
    name = next((root for root, made in PAGES.items() if made == page.file.src_uri), None)
    if page.file.src_uri.startswith("code/"):
        return markdown
    folder = ROOT if name else ROOT / "docs"

    def rewritten(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        if not target.is_relative_to(ROOT):
            return link[0]
        path = target.relative_to(ROOT).as_posix()
        if path in PAGES:
            path = PAGES[path]
        elif path.startswith("docs/"):
            path = path.removeprefix("docs/")
        elif files.get_file_from_path(f"code/{path}.md"):
            path = f"code/{path}.md"
        elif not files.get_file_from_path(path):
            return link[0]
        return f"{link[1]}{path}{link[3] or ''}{link[4]}"

    return LINK.sub(rewritten, markdown)


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Docstrings mark names by role (``:func:`` and the like) and blocks of code by ``::``, which markdown has not."""
    if page.file.src_uri != "api.md":
        return html
    html = re.sub(r":(?:func|class|meth|mod|attr|data):(?=<code>)", "", html)
    return html.replace("::</p>", ":</p>")
