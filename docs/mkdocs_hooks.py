"""What mkdocs.yml cannot say: pages and figures from outside docs/, and docstrings as Markdown."""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md", "dctps_jax/ops/README.md")
FIGURES = "results/*/*.png"


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and figures that lie outside docs/, under their paths from the root."""
    for path in (*PAGES, *(file.relative_to(ROOT).as_posix() for file in sorted(ROOT.glob(FIGURES)))):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links between docs/ and the root into links of the site, where both lie in one folder.

    In the cells of a table Markdown on the web needs ``\\|`` within code; the Markdown of the site shows the backslash.
    """
    markdown = markdown.replace("\\|", "|")
    if page.file.src_uri in PAGES:
        return markdown.replace("](docs/", "](")
    is_below_docs = "/" in page.file.src_uri
    return markdown if is_below_docs else markdown.replace("](../", "](")


class RolesAsCode(griffe.Extension):
    """Docstrings have Sphinx roles, and ``::`` before code; Markdown knows neither."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """Return a docstring as Markdown: roles as code, the last name only where the target begins with ``~``."""
    text = re.sub(r":[a-z]+:`~(?:[\w.]+\.)?(\w+)`", r"`\1`", docstring)
    text = re.sub(r":[a-z]+:`([^`]+)`", r"`\1`", text)
    return re.sub(r"::$", ":", text, flags=re.MULTILINE)
