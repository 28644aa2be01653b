"""Sources of labeled texts (20 newsgroups, docstrings of installed packages, your own files), each read into a Corpus.

Tokenization is in data.tokenize; padding, batches and their order are in data.batches.
"""

from pathlib import Path

from bertmon.config import DataConfig, DocstringsConfig, FilesConfig, NewsgroupsConfig
from bertmon.data import docstrings, newsgroups, text_files
from bertmon.data.corpus import Corpus, Split
from bertmon.data.text_files import LazyTexts
from bertmon.errors import InputError

__all__ = ["Corpus", "LazyTexts", "Split", "load_corpus"]


def load_corpus(config: DataConfig, cache: Path) -> Corpus:
    """The corpus that `config` names. Raises InputError if it cannot be read or is not a classification task."""
    match config:
        case NewsgroupsConfig():
            return newsgroups.read(config, cache)
        case DocstringsConfig():
            return docstrings.read(config, cache)
        case FilesConfig():
            return text_files.read(config, cache)
    raise InputError("data: expected newsgroups, docstrings or files, got nothing.")
