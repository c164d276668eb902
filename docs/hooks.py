"""What mkdocs.yml cannot say: pages made of files outside docs/, and formulas without a script."""

import html
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Files of the repository that are pages of the site."""
EXAMPLES = "examples.md"
_DISPLAYED = 'style="overflow: auto hidden; padding: 0.6em 0"'
"""A formula that is wider than a telephone is moved sideways by itself."""
_SOURCES = {page: file for file, page in PAGES.items()}
_LINK = re.compile(r"\[([^][]*)\]\(([^)#:]+)(#[^)]*)?\)")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages made of files outside docs/, and one with the examples."""
    for file, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text("utf-8")))
    files.append(File.generated(config, EXAMPLES, content=_examples()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Let links to files of the repository lead to their pages; those without one become text."""
    uri = page.file.src_uri
    folder = posixpath.dirname(_SOURCES.get(uri, f"docs/{uri}"))

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        file = posixpath.normpath(posixpath.join(folder, target))
        if file == "examples" or file.startswith("examples/"):
            return f"[{text}]({EXAMPLES})"
        if file in PAGES or file.startswith("docs/"):
            return f"[{text}]({PAGES.get(file, file.removeprefix('docs/'))}{anchor})"
        return text if (ROOT / file).exists() else found[0]

    return _LINK.sub(link, markdown)


def on_page_content(content: str, **_: object) -> str:
    """Turn formulas into MathML, which browsers draw by themselves."""

    def formula(found: re.Match[str]) -> str:
        if found[1] == "span":
            return convert(html.unescape(found[2]))
        made = convert(html.unescape(found[2]), display="block")
        return f"<div {_DISPLAYED} data-search-exclude>{made}</div>"

    return _FORMULA.sub(formula, content)


def _examples() -> str:
    """All files of examples/ on one page."""
    parts = ["# Examples", "The files of the folder `examples`, as they are."]
    for path in sorted((ROOT / "examples").iterdir()):
        language = path.suffix.removeprefix(".").replace("py", "python")
        parts += [f"## {path.name}", f"```{language}\n{path.read_text('utf-8')}```"]
    return "\n\n".join(parts) + "\n"
