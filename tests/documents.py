"""The documents as tests read them: their blocks of code, their commands, their options and links."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(REPO).as_posix()
    for pattern in ("*.md", "benchmarks/*.md", "dctps_jax/**/*.md", "docs/**/*.md")
    for path in REPO.glob(pattern)
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")


class Block(NamedTuple):
    """A block of code, the language that its fence names, and the line of the page where it begins."""

    language: str
    code: str
    line: int


def read(page):
    return (REPO / page).read_text(encoding="utf-8")


def blocks(page):
    text = read(page)
    return [Block(found[1], found[2], text[: found.start(2)].count("\n") + 1) for found in FENCE.finditer(text)]


def prose(page):
    """Return a page without its blocks of code."""
    return FENCE.sub("", read(page))


def code_spans(page):
    return [" ".join(span[2].split()) for span in SPAN.finditer(prose(page))]


def links(page):
    """Return the targets of links and images to files, without anchors."""
    return [file for file, _ in _targets(page) if file]


def linked_headings(page):
    """Return (page, anchor) of the links to headings."""
    folder = Path(page).parent
    return [
        ((REPO / folder / file).resolve().relative_to(REPO).as_posix() if file else page, anchor)
        for file, anchor in _targets(page)
        if anchor
    ]


def _targets(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target.split("#") if "#" in target else (target, "") for target in targets if not target.startswith("http")]


def anchors(page):
    """Return the anchors that headings have both on GitHub and in the site, which joins hyphens that touch."""
    headings = re.findall(r"^#+ (.+)$", prose(page).lower(), re.MULTILINE)
    words = [re.sub(r"[^\w\s-]", "", heading) for heading in headings]
    on_github = {text.replace(" ", "-") for text in words}
    return on_github & {re.sub(r"[-\s]+", "-", text.strip()) for text in words}


def commands(code):
    """Return the commands of a shell block as lists of words, without comments and settings of the environment."""
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            command, words = words[:end], words[end + 1 :]
            while command and ASSIGNMENT.fullmatch(command[0]):
                command = command[1:]
            found.append(command)
    return found
