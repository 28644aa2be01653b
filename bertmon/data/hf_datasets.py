"""Data sets on the Hugging Face hub and folders written by datasets.save_to_disk, read with the `datasets` library.

An optional extra: pip install 'bertmon[datasets]'. Since version 4, the library runs no code from data sets. Rows are
checked in the same way as those of files.
Shapes: N texts of a split.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from bertmon.config import HfConfig
from bertmon.data.corpus import Corpus
from bertmon.data.examples import ExampleReader, text_columns
from bertmon.data.parts import LabelIndex, PartContent, build_corpus
from bertmon.data.table_rows import BadRowError, MissingColumnsError, Row, located_errors
from bertmon.data.text_files import label_order, propose_columns
from bertmon.errors import InputError, first_line


def read(config: HfConfig) -> Corpus:
    """The corpus of the splits that the config names; other parts are split off the training split.

    Class labels have the names and the order of the data set. Raises InputError.
    """
    loaded = _load(config)
    splits = {"train": config.train_split, "test": config.test_split, "validation": config.validation_split}
    named = {part: split for part, split in splits.items() if split is not None}
    for part, split in named.items():
        if split not in loaded:
            default = ", or null to take it from the training part" if part != "train" else ""
            expected = f"one of the splits of {config.name} ({', '.join(loaded)}){default}"
            raise InputError(f"data.{part}_split: expected {expected}, got {split}.")
    parts = {part: _read_split(loaded[split], part, split, config) for part, split in named.items()}
    present = set(parts["train"].label_names)
    names = _class_names(loaded[config.train_split], config.label_column) or sorted(present, key=label_order)
    sources = {part: f"{config.name}, split {split}" for part, split in named.items()}
    return build_corpus(parts, sources, config, [name for name in names if name in present], suffix="_split")


def _load(config: HfConfig) -> dict[str, Any]:
    """The data set's splits by name; a folder with a single Dataset is the training split."""
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError:
        raise InputError("data: data=hf needs the datasets library: pip install 'bertmon[datasets]'.") from None
    folder = Path(os.path.expanduser(config.name))
    if not folder.exists():
        _require_hub(config.name)
    try:
        with _no_progress_bars():
            if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
                loaded = datasets.load_from_disk(str(folder))
            else:
                loaded = datasets.load_dataset(str(folder) if folder.exists() else config.name, config.subset)
    except Exception as error:  # the library can raise anything for a third-party folder or the hub's response
        raise InputError(
            f"data.name: could not load the data set {config.name} ({first_line(error)}).\n"
            "Set the name of a data set on the hub, with data.subset if it has several, or a folder of "
            "datasets.save_to_disk."
        ) from None
    return dict(loaded) if isinstance(loaded, dict) else {config.train_split: loaded}


def _require_hub(name: str) -> None:
    """Raise InputError if the hub cannot be reached: its client would retry for half a minute."""
    from huggingface_hub import constants

    proxied = any(variable.lower() in ("http_proxy", "https_proxy", "all_proxy") for variable in os.environ)
    if constants.HF_HUB_OFFLINE or proxied:
        return  # only the cache is used, or only the proxy can resolve the address
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError as error:
        raise InputError(
            f"data.name: expected an existing folder, or a network to download {name} from the hub "
            f"({error.strerror}). HF_HUB_OFFLINE=1 uses one that was downloaded before."
        ) from None


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    import datasets

    enabled = datasets.utils.are_progress_bars_disabled() is False
    datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        if enabled:
            datasets.utils.enable_progress_bars()


def _read_split(dataset: Any, part: str, split: str, config: HfConfig) -> PartContent:
    """The texts of one split, in memory. Errors name the key, the data set and the row, counted from 1."""
    where = f"data.{part}_split: {config.name}, split {split}"
    reader = ExampleReader(
        f"{config.name}, split {split}", "row", text_columns(config), config.label_column, config.skip_empty
    )
    texts, labels, index = [], [], LabelIndex()
    with located_errors(where, "row", lambda missing: propose_columns(missing, config)):
        for _, text, label in reader.examples(_rows(dataset, reader.columns, config.label_column)):
            texts.append(text)
            labels.append(index[label])
    if not texts:
        raise InputError(f"{where}: expected texts, got none.")
    return PartContent(texts, list(index), np.array(labels, dtype=np.int64), reader.notes())


def _rows(dataset: Any, columns: tuple[str, ...], label_column: str) -> Iterator[Row]:
    """All rows, numbered from 1, with class labels by name."""
    if missing := [column for column in columns if column not in dataset.column_names]:
        raise MissingColumnsError(0, missing, list(dataset.column_names))
    names = _class_names(dataset, label_column)
    for number, values in enumerate(dataset.select_columns(list(columns)), start=1):
        if names is not None and (label := values[label_column]) is not None:
            if not 0 <= label < len(names):
                raise BadRowError(number, f"has the label {label}, which marks a hidden label: choose another split")
            values = values | {label_column: names[label]}
        yield Row(number, 0, values)


def _class_names(dataset: Any, label_column: str) -> list[str] | None:
    """The names of a ClassLabel column; None for other types."""
    names = getattr(dataset.features.get(label_column), "names", None)
    return None if names is None else [str(name).strip() for name in names]
