"""Where texts come from: 20 newsgroups, docstrings of installed packages, your own files -> Corpus.

Leaves tokens, batches and their order to tokens and batches.
"""

from pathlib import Path

from bertmon.config import DataConfig, DocstringsConfig, FilesConfig, NewsgroupsConfig
from bertmon.data import docstrings, newsgroups, text_files
from bertmon.data.corpus import Corpus, Split
from bertmon.data.text_files import LazyTexts
from bertmon.errors import InputError

__all__ = ["Corpus", "LazyTexts", "Split", "load_corpus"]


def load_corpus(config: DataConfig, cache: Path) -> Corpus:
    """The texts that the config asks for. Raises InputError where they cannot be had or do not make a task."""
    match config:
        case NewsgroupsConfig():
            return newsgroups.read(config, cache)
        case DocstringsConfig():
            return docstrings.read(config, cache)
        case FilesConfig():
            return text_files.read(config, cache)
    raise InputError("data is missing: give data=newsgroups, data=docstrings or data=files.")
