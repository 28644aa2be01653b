"""Where texts come from: 20 newsgroups, docstrings of installed packages, your own files -> Corpus.

Knows files, packages and downloads. Leaves tokens, batches and their order to batches.
Shapes: N texts of a split, C classes.
"""

import ast
import csv
import importlib.metadata
import importlib.util
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bertmon.cache import cached, digest
from bertmon.config import DataConfig, DocstringsConfig, FilesConfig, InputError, NewsgroupsConfig


@dataclass(frozen=True, slots=True)
class Split:
    """Texts [N] and their labels [N], each from 0 to C - 1."""

    texts: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class Corpus:
    """A training and a test split over the same label names [C]."""

    train: Split
    test: Split
    label_names: tuple[str, ...]

    def fingerprint(self) -> str:
        """SHA-256 of all texts, labels and label names, in order."""
        parts = [*self.label_names]
        for split in (self.train, self.test):
            parts += [*split.texts, ",".join(map(str, split.labels))]
        return digest(*parts)

    def majority(self) -> float:
        """Share of the test split that its most frequent class has: what a run that learned nothing reaches."""
        return max(self.test.labels.count(label) for label in set(self.test.labels)) / len(self.test)


def load(config: DataConfig, cache: Path) -> Corpus:
    """The texts that the config asks for. Raises InputError where they cannot be had or do not make a task."""
    match config:
        case NewsgroupsConfig():
            return _newsgroups(config, cache)
        case DocstringsConfig():
            return _docstrings(config, cache)
        case FilesConfig():
            return _files(config)
    raise InputError("data is missing: give data=newsgroups, data=docstrings or data=files.")


def _stored(cache: Path, name: str, read: Callable[[], Corpus]) -> Corpus:
    """The corpus from the cache, where it is, else read and kept there."""
    content = json.loads(cached(cache, name, lambda: json.dumps(asdict(read())).encode()))
    return Corpus(Split(**content["train"]), Split(**content["test"]), tuple(content["label_names"]))


# --- 20 newsgroups -------------------------------------------------------------------------------

NEWSGROUPS = (
    "alt.atheism",
    "comp.graphics",
    "comp.os.ms-windows.misc",
    "comp.sys.ibm.pc.hardware",
    "comp.sys.mac.hardware",
    "comp.windows.x",
    "misc.forsale",
    "rec.autos",
    "rec.motorcycles",
    "rec.sport.baseball",
    "rec.sport.hockey",
    "sci.crypt",
    "sci.electronics",
    "sci.med",
    "sci.space",
    "soc.religion.christian",
    "talk.politics.guns",
    "talk.politics.mideast",
    "talk.politics.misc",
    "talk.religion.misc",
)


def _newsgroups(config: NewsgroupsConfig, cache: Path) -> Corpus:
    for category in config.categories:
        if category not in NEWSGROUPS:
            raise InputError(f"data.categories: there is no newsgroup {category}. There are {', '.join(NEWSGROUPS)}.")
    key = digest("1", importlib.metadata.version("scikit-learn"), *config.categories, "remove", *config.remove)
    return _stored(cache, f"newsgroups-{key[:32]}.json", lambda: _fetch_newsgroups(config))


def _fetch_newsgroups(config: NewsgroupsConfig) -> Corpus:
    from sklearn.datasets import fetch_20newsgroups

    def part(subset: str) -> tuple[Split, tuple[str, ...]]:
        fetched = fetch_20newsgroups(
            data_home=config.home,
            subset=subset,
            categories=config.categories,
            remove=tuple(part.value for part in config.remove),
            shuffle=False,
            n_retries=1,
        )
        return Split(fetched.data, fetched.target.tolist()), tuple(fetched.target_names)

    try:
        (train, label_names), (test, test_names) = part("train"), part("test")
    except OSError as error:
        raise InputError(
            f"data=newsgroups cannot be had ({error}). With no network, fetch it elsewhere with\n"
            "  python -c 'from sklearn.datasets import fetch_20newsgroups as f; f(subset=\"all\")'\n"
            "and give the folder that then holds 20news-bydate_py3.pkz as data.home=..., "
            "or train on what is already here: experiment=quickstart"
        ) from None
    assert label_names == test_names
    return Corpus(train, test, label_names)


# --- docstrings of installed packages ------------------------------------------------------------

_SHORTEST = 20  # words; below that a docstring is a stub ("Return self.") that no reader could place
_NICKNAMES = {
    "numpy": ("np",),
    "sklearn": ("scikit",),
    "matplotlib": ("mpl", "plt", "pyplot"),
    "torch": ("pytorch",),
}


def _docstrings(config: DocstringsConfig, cache: Path) -> Corpus:
    folders = [_package_folder(package) for package in config.packages]
    sources = [sorted(path for path in folder.rglob("*.py") if _is_source(path, folder)) for folder in folders]
    state = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for paths in sources for path in paths]
    key = digest("1", json.dumps(asdict(config)), *state)  # raise the number when the reading below changes

    def read() -> Corpus:
        count = config.train_per_package + config.test_per_package
        mask = _mask(config.packages)
        chosen: dict[str, int] = {}  # text -> label; a text that two packages share stays with the first
        for label, (package, folder, paths) in enumerate(zip(config.packages, folders, sources, strict=True)):
            texts = _read_package(folder, paths, mask, enough=2 * count) - chosen.keys()
            if len(texts) < count:
                raise InputError(
                    f"data.packages: {package} has {len(texts)} docstrings of at least {_SHORTEST} words, and "
                    f"data.train_per_package + data.test_per_package asks for {count}."
                )
            chosen |= dict.fromkeys(sorted(texts, key=digest)[:count], label)
        train, test = Split([], []), Split([], [])
        for row, (text, label) in enumerate(chosen.items()):
            split = test if row % count < config.test_per_package else train
            split.texts.append(text)
            split.labels.append(label)
        return Corpus(train, test, tuple(config.packages))

    return _stored(cache, f"docstrings-{key[:32]}.json", read)


def _package_folder(package: str) -> Path:
    """The folder of an installed top-level package, found without importing it."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    locations = list(spec.submodule_search_locations or ()) if spec else []
    if not locations:
        raise InputError(f"data.packages: {package} is not an installed package.")
    return Path(locations[0])


def _is_source(path: Path, folder: Path) -> bool:
    return not any(part.startswith("test") for part in path.relative_to(folder).parts)


def _read_package(folder: Path, paths: list[Path], mask: re.Pattern[str], *, enough: int) -> set[str]:
    """Masked docstrings of the package, from its files in a fixed random order, until there are `enough`."""
    texts: set[str] = set()
    for path in sorted(paths, key=lambda path: digest(path.relative_to(folder).as_posix())):
        if len(texts) >= enough:
            break
        texts.update(mask.sub("_", docstring) for docstring in _docstrings_of(path))
    return texts


def _docstrings_of(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in other people's string literals
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # a file meant for another Python version
            return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring and len(docstring.split()) >= _SHORTEST:
                yield docstring


def _mask(packages: Sequence[str]) -> re.Pattern[str]:
    """Matches every name of every package: that of its import, of its distribution, and its customary short forms."""
    distributions = importlib.metadata.packages_distributions()
    names = {
        name
        for package in packages
        for name in (package, *distributions.get(package, ()), *_NICKNAMES.get(package, ()))
    }
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, longest_first))})(?![A-Za-z0-9])", re.IGNORECASE)


# --- your own files ------------------------------------------------------------------------------


def _files(config: FilesConfig) -> Corpus:
    train_texts, train_labels = _read_file("data.train", config.train, config)
    test_texts, test_labels = _read_file("data.test", config.test, config)
    names = sorted(set(train_labels), key=lambda name: (int(name), "") if _is_number(name) else (sys.maxsize, name))
    if len(names) < 2:
        raise InputError(f"data.train: {config.train} has the one label {names[0]}: at least two are needed.")
    unknown = sorted(set(test_labels) - set(names))
    if unknown:
        raise InputError(
            f"data.test: {config.test} has the label {unknown[0]}, which {config.train} lacks. "
            f"Known are {_shortened(names)}."
        )
    index = {name: label for label, name in enumerate(names)}
    return Corpus(
        Split(train_texts, [index[name] for name in train_labels]),
        Split(test_texts, [index[name] for name in test_labels]),
        tuple(names),
    )


def _read_file(key: str, name: str, config: FilesConfig) -> tuple[list[str], list[str]]:
    """Texts [N] and label names [N] of one file. Every error names the key, the file and the line."""
    path = Path(name).expanduser()
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{key}={name} is not possible: give a file that ends in {', '.join(_READERS)}.")
    if not path.is_file():
        raise InputError(f"{key}={name}: there is no such file in {Path.cwd()}.")
    texts, labels = [], []
    try:
        for line, row in reader(path):
            for column in (config.text_column, config.label_column):
                if column not in row:
                    raise _BadRowError(line, f"has no {column!r}; it has {_shortened(list(map(repr, row)))}")
            texts.append(_text(line, config.text_column, row[config.text_column]))
            labels.append(_label(line, config.label_column, row[config.label_column]))
    except _BadRowError as bad:
        raise InputError(f"{key}: {name}, line {bad.line} {bad.reason}.") from None
    except OSError as error:
        raise InputError(f"{key}: {name} cannot be read: {error.strerror}.") from None
    if not texts:
        raise InputError(f"{key}: {name} holds no texts.")
    return texts, labels


class _BadRowError(Exception):
    """`reason` completes the sentence "FILE, line LINE ..."."""

    def __init__(self, line: int, reason: str) -> None:
        self.line, self.reason = line, reason


def _text(line: int, column: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _BadRowError(line, f"has {_quoted(value)} as {column!r}: a text is needed")
    return value


def _label(line: int, column: str, value: object) -> str:
    if not isinstance(value, str | int) or not str(value).strip():
        raise _BadRowError(line, f"has {_quoted(value)} as {column!r}: a string, whole number or boolean is needed")
    return str(value)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1, ends kept; a byte order mark is skipped."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _BadRowError(number, f"is not UTF-8 ({error.reason} at byte {error.start + 1})") from None


def _rows_of_table(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, object]]]:
    csv.field_size_limit(sys.maxsize)  # the module's default cuts documents off at 128 KiB
    rows = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    try:
        header = next(rows, None)
        if header is None:
            return
        if len(set(header)) < len(header):
            raise _BadRowError(1, f"names a column twice: {_shortened(header)}")
        first_line = rows.line_num + 1  # of a row, which may span several lines
        for row in rows:
            if row:
                if len(row) != len(header):
                    raise _BadRowError(first_line, f"has {len(row)} fields where the header has {len(header)}")
                yield first_line, dict(zip(header, row, strict=True))
            first_line = rows.line_num + 1
    except csv.Error as error:
        raise _BadRowError(rows.line_num, f"is not well-formed: {error}") from None


def _rows_of_jsonl(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise _BadRowError(number, f"is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise _BadRowError(number, f"holds {_quoted(row)}: an object is needed")
        yield number, row


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, dict[str, object]]]]] = {
    ".csv": lambda path: _rows_of_table(path, ","),
    ".tsv": lambda path: _rows_of_table(path, "\t"),
    ".jsonl": _rows_of_jsonl,
}


def _is_number(name: str) -> bool:
    return re.fullmatch(r"-?[0-9]{1,15}", name) is not None


def _quoted(value: object) -> str:
    text = json.dumps(value, ensure_ascii=True, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
