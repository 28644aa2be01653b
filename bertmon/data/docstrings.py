"""Docstrings of installed packages, labeled by package: real English texts that every machine has.

Packages are parsed with `ast` and never imported.
"""

import ast
import importlib.metadata
import importlib.util
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from bertmon.config import DocstringsConfig
from bertmon.data.corpus import Corpus, Split, cached_corpus
from bertmon.errors import InputError
from bertmon.storage import content_hash

_MIN_WORDS = 20  # words; a shorter docstring is a stub ("Return self.") that no reader could classify
_ALIASES = {
    "numpy": ("np",),
    "sklearn": ("scikit",),
    "matplotlib": ("mpl", "plt", "pyplot"),
    "torch": ("pytorch",),
}


def read(config: DocstringsConfig, cache: Path) -> Corpus:
    """The same number of docstrings from each package, in an order and split that depend only on their content."""
    folders = [_package_folder(package) for package in config.packages]
    sources = [sorted(path for path in folder.rglob("*.py") if _is_source(path, folder)) for folder in folders]
    stamps = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for paths in sources for path in paths]
    key = content_hash(
        "1", *map(str, (config.packages, config.train_per_package, config.test_per_package)), *stamps
    )  # increase the number when the reading below changes
    return cached_corpus(cache, f"docstrings-{key[:32]}.json", lambda: _collect(config, folders, sources))


def _collect(config: DocstringsConfig, folders: list[Path], sources: list[list[Path]]) -> Corpus:
    count = config.train_per_package + config.test_per_package
    mask = _mask(config.packages)
    labels: dict[str, int] = {}  # by text; a text in two packages belongs to the first
    for label, (package, folder, paths) in enumerate(zip(config.packages, folders, sources, strict=True)):
        texts = _read_package(folder, paths, mask, min_texts=2 * count) - labels.keys()
        if len(texts) < count:
            raise InputError(
                f"data.packages: expected packages with {count} docstrings of at least {_MIN_WORDS} words "
                f"(data.train_per_package + data.test_per_package), got {package} with {len(texts)}."
            )
        labels |= dict.fromkeys(sorted(texts, key=content_hash)[:count], label)
    train: list[tuple[str, int]] = []
    test: list[tuple[str, int]] = []
    for row, example in enumerate(labels.items()):
        (test if row % count < config.test_per_package else train).append(example)
    return Corpus(_split(train), _split(test), tuple(config.packages))


def _split(examples: list[tuple[str, int]]) -> Split:
    return Split([text for text, _ in examples], [label for _, label in examples])


def _package_folder(package: str) -> Path:
    """The folder of an installed top-level package, found without importing it."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    locations = list(spec.submodule_search_locations or ()) if spec else []
    if not locations:
        raise InputError(f"data.packages: expected installed packages, got {package}.")
    return Path(locations[0])


def _is_source(path: Path, folder: Path) -> bool:
    return not any(part.startswith("test") for part in path.relative_to(folder).parts)


def _read_package(folder: Path, paths: list[Path], mask: re.Pattern[str], *, min_texts: int) -> set[str]:
    """Masked docstrings of the package, from its files in a fixed random order, stopping after `min_texts`."""
    texts: set[str] = set()
    for path in sorted(paths, key=lambda path: content_hash(path.relative_to(folder).as_posix())):
        if len(texts) >= min_texts:
            break
        texts.update(mask.sub("_", docstring) for docstring in _docstrings_of(path))
    return texts


def _docstrings_of(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in third-party string literals
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # a file meant for another Python version
            return
    for node in _docstring_nodes(tree):
        docstring = ast.get_docstring(node)
        if docstring and len(docstring.split()) >= _MIN_WORDS:
            yield docstring


def _docstring_nodes(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """The nodes of ast.walk that can have a docstring. Visits statements only: most nodes are expressions."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            if isinstance(children := getattr(node, block, None), list):  # the body of a lambda is an expression
                stack += children


def _mask(packages: Sequence[str]) -> re.Pattern[str]:
    """A pattern for all names of the packages: import names, distribution names, usual abbreviations."""
    distributions = importlib.metadata.packages_distributions()
    names = {
        name for package in packages for name in (package, *distributions.get(package, ()), *_ALIASES.get(package, ()))
    }
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, longest_first))})(?![A-Za-z0-9])", re.IGNORECASE)
