"""20 newsgroups, downloaded and stored by scikit-learn, with its training and test parts split by date."""

import importlib.metadata
import os
import warnings
from pathlib import Path

from bertmon.config import NewsgroupsConfig
from bertmon.data.corpus import Corpus, Split, cached_corpus
from bertmon.errors import InputError, require
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
    """The corpus of the categories. Raises InputError for an unknown category, or if the data is unavailable."""
    for category in config.categories:
        require(category in NEWSGROUPS, "data.categories", category, f"newsgroups among {', '.join(NEWSGROUPS)}")
    home = config.data_home
    require(
        home is None or os.path.isdir(os.path.expanduser(home)), "data.data_home", home, "an existing folder, or null"
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
            remove=tuple(post_part.value for post_part in config.remove),
            shuffle=False,
            n_retries=1,
        )
        return Split(fetched.data, fetched.target.tolist()), tuple(fetched.target_names)

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Retry downloading")  # the error below is enough
            (train, label_names), (test, test_names) = part("train"), part("test")
    except OSError as error:
        raise InputError(
            f"data: could not download 20 newsgroups ({error}). Without a network, download it elsewhere with\n"
            "  python -c 'from sklearn.datasets import fetch_20newsgroups as f; f(subset=\"all\")'\n"
            "and set data.data_home=... to the folder that then holds 20news-bydate_py3.pkz, "
            "or train on docstrings of installed packages: experiment=quickstart"
        ) from None
    assert label_names == test_names
    return Corpus(train, test, label_names)
