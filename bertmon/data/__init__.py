"""Sources of labeled texts, each read into a Corpus: 20 newsgroups, docstrings, your own files, data sets on the hub.

Tokenization is in data.tokenize; padding, batches and their order are in data.batches.
"""

from pathlib import Path

from bertmon.config import DataConfig, DocstringsConfig, FilesConfig, HfConfig, NewsgroupsConfig
from bertmon.data import docstrings, hf_datasets, newsgroups, text_files
from bertmon.data.corpus import Corpus, Split
from bertmon.data.lazy_texts import LazyTexts
from bertmon.data.splitting import with_validation
from bertmon.errors import InputError

__all__ = ["Corpus", "LazyTexts", "Split", "load_corpus"]


def load_corpus(config: DataConfig, cache: Path) -> Corpus:
    """The corpus that `config` describes. Raises InputError if it cannot be read or is not a classification task."""
    match config:
        case FilesConfig():
            return text_files.read(config, cache)
        case HfConfig():
            return hf_datasets.read(config)
        case NewsgroupsConfig():
            corpus = newsgroups.read(config, cache)
        case DocstringsConfig():
            corpus = docstrings.read(config, cache)
        case _:
            raise InputError("data: no data source was chosen; choose data=newsgroups, docstrings, files or hf.")
    return with_validation(corpus, config.validation_frac, config.split_seed) if config.validation_frac else corpus
