"""The spinning of torch's threads, limited before torch is loaded unless the user has set it."""

import os

import pytest

from bertmon.launch.threads import configure_threads


@pytest.fixture
def environment(monkeypatch):
    """The process's environment without any OpenMP variable; restored afterwards."""
    for name in [name for name in os.environ if name.startswith(("OMP_", "GOMP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GOMP_SPINCOUNT", "")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    return monkeypatch


def test_configure_threads_limits_spinning(environment):
    configure_threads()
    assert os.environ["GOMP_SPINCOUNT"] == "10000"


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_configure_threads_keeps_variables_set_by_the_user(environment, name):
    environment.setenv(name, "7")
    before = dict(os.environ)
    configure_threads()
    assert dict(os.environ) == before
