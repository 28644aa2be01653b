"""The documentation: generated pages are current, links have targets, and commands are valid."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import generate
import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"(?<!`)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", generate.PAGES)
def test_generated_page_is_current(name):
    assert (ROOT / "docs" / name).read_text() == generate.PAGES[name](), "run python docs/generate.py"


def anchors(page: Path) -> set[str]:
    """Fragments of a page's headings, as GitHub generates them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_have_targets(page):
    missing = []
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, fragment = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (fragment and target.suffix == ".md" and fragment not in anchors(target)):
            missing.append(link)
    assert not missing


def test_every_page_of_docs_is_linked_from_its_index():
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in LINK.findall(index.read_text())}
    assert {page for page in PAGES if page.parent.name == "docs"} - {index} <= linked


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each `python -m bertmon.run` or `bertmon run` command in a page's code blocks and code spans."""
    text = page.read_text().replace("\\\n", " ")
    code = [block.strip("`") for block in FENCE.findall(text)] + re.findall(r"(?<!`)`([^`\n]+)`", FENCE.sub("", text))
    for match in re.finditer(r"bertmon(?:\.run| run) ([^\n&]+)", "\n".join(code)):
        words = shlex.split(match[1], comments=True)
        if words and "..." not in words:
            yield words


RUNS = {tuple(words): page.name for page in PAGES for words in commands(page) if page.name != "LOG.md"}


def one_value(word: str, which: int) -> str:
    """An override with the first (0) or last (-1) value of a simple sweep."""
    key, equals, value = word.partition("=")
    return f"{key}{equals}{value if set('[({') & set(value) else value.split(',')[which]}"


@pytest.mark.parametrize("words", RUNS, ids=[f"{name}: {' '.join(words)}" for words, name in RUNS.items()])
def test_command_composes(words, monkeypatch):
    from bertmon.launch.compose import load_config

    if {"--config-dir", "--help"} & set(words) or any("<" in word for word in words):
        pytest.skip("names a folder of the reader, or only prints")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    is_override = re.compile(r"[\w/.]+=(?!(tag|choice|interval|range)\()")  # ranges of a search are read by its sweeper
    overrides = [word for word in words if is_override.match(word)]
    for values in {tuple(one_value(word, which) for word in overrides) for which in (0, -1)}:
        load_config(values)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_files_that_a_page_names_exist(page):
    if page.name != "LOG.md":
        names = re.findall(r"\b((?:benchmarks|bertmon|docs|examples|tests)/[\w/]+\.py)", page.read_text())
        assert [name for name in names if not (ROOT / name).exists()] == []
