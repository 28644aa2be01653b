"""20 newsgroups, as scikit-learn fetches and keeps it."""

import importlib.metadata
import os
import warnings
from pathlib import Path

from bertmon.config import NewsgroupsConfig
from bertmon.data.corpus import Corpus, Split, cached_corpus
from bertmon.errors import InputError
from bertmon.sanitize import sanitize_line
from bertmon.storage import content_hash

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


def read(config: NewsgroupsConfig, cache: Path) -> Corpus:
    """The categories' train and test parts. Raises InputError for an unknown one, or where they cannot be had."""
    for category in config.categories:
        if category not in NEWSGROUPS:
            raise InputError(
                f"data.categories: there is no newsgroup {sanitize_line(category)}. There are {', '.join(NEWSGROUPS)}."
            )
    if config.data_home is not None and not os.path.isdir(os.path.expanduser(config.data_home)):
        raise InputError(
            f"data.data_home={sanitize_line(config.data_home)} is not possible: give a folder that is there, or null."
        )
    key = content_hash("1", importlib.metadata.version("scikit-learn"), *config.categories, "remove", *config.remove)
    return cached_corpus(cache, f"newsgroups-{key[:32]}.json", lambda: _fetch(config))


def _fetch(config: NewsgroupsConfig) -> Corpus:
    from sklearn.datasets import fetch_20newsgroups

    def part(subset: str) -> tuple[Split, tuple[str, ...]]:
        fetched = fetch_20newsgroups(
            data_home=config.data_home and Path(config.data_home).expanduser(),
            subset=subset,
            categories=config.categories,
            remove=tuple(part.value for part in config.remove),
            shuffle=False,
            n_retries=1,
        )
        return Split(fetched.data, fetched.target.tolist()), tuple(fetched.target_names)

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Retry downloading")  # the error below says it all
            (train, label_names), (test, test_names) = part("train"), part("test")
    except OSError as error:
        raise InputError(
            f"data=newsgroups cannot be had ({error}). With no network, fetch it elsewhere with\n"
            "  python -c 'from sklearn.datasets import fetch_20newsgroups as f; f(subset=\"all\")'\n"
            "and give the folder that then holds 20news-bydate_py3.pkz as data.data_home=..., "
            "or train on what is already here: experiment=quickstart"
        ) from None
    assert label_names == test_names
    return Corpus(train, test, label_names)
