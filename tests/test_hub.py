import socket

import huggingface_hub
import pytest

from bertmon.errors import InputError
from bertmon.hub import local_files_only


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)


@pytest.fixture
def offline(monkeypatch):
    def fail(*address):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)


def test_folder_needs_no_network(offline, tmp_path):
    assert local_files_only("model.name", str(tmp_path))
    assert local_files_only("model.name", "./no/such/folder")  # the loader reports that it is missing


def test_unreachable_hub_is_one_error_with_alternatives(offline):
    message = r"model\.name=no-such/model is not on this machine(.|\n)*use model\.name=FOLDER, a model downloaded"
    with pytest.raises(InputError, match=message):
        local_files_only("model.name", "no-such/model")


def test_unreachable_hub_is_no_error_if_the_model_is_cached(offline, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: f"/cache/{name}/{file}")
    assert local_files_only("model.name", "some/model")


def test_reachable_hub_or_proxy_is_used(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address: [])
    assert not local_files_only("model.name", "some/model")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert not local_files_only("model.name", "some/model")
