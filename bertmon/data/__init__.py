"""Where texts come from: 20 newsgroups, docstrings of installed packages, your own files -> Corpus.

Leaves tokens, batches and their order to tokens and batches.
"""

from pathlib import Path

from bertmon.config import DataConfig, DocstringsConfig, FilesConfig, InputError, NewsgroupsConfig
from bertmon.data import docstrings, files, newsgroups
from bertmon.data.corpus import Corpus, Split
from bertmon.data.files import FileTexts

__all__ = ["Corpus", "FileTexts", "Split", "load"]


def load(config: DataConfig, cache: Path) -> Corpus:
    """The texts that the config asks for. Raises InputError where they cannot be had or do not make a task."""
    match config:
        case NewsgroupsConfig():
            return newsgroups.read(config, cache)
        case DocstringsConfig():
            return docstrings.read(config, cache)
        case FilesConfig():
            return files.read(config, cache)
    raise InputError("data is missing: give data=newsgroups, data=docstrings or data=files.")
