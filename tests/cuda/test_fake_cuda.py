"""The CUDA path on tensors without data: devices, dtypes, waits of the host, memory. Planted faults test the checks.

benchmarks/cuda_validation.py checks the rest (values, kernels, speed) on a GPU.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TIMEOUT

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]

pytestmark = [
    pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed"),
    pytest.mark.skipif(
        torch.version.cuda is not None, reason="this build of torch has CUDA: benchmarks/cuda_validation.py checks it"
    ),
]

READS = ["cpu", "item", "tolist"]
"""Reads of a monitored step: statistics, the standard deviation of the logits, losses and gradient norms."""


def answer(scenario: str) -> dict[str, Any]:
    """The results that fake_run.py prints."""
    process = _process(scenario)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


@functools.cache
def _process(scenario: str) -> subprocess.CompletedProcess[str]:
    """Run fake_run.py in its own process, once for all tests."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "benchmarks")])}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(HERE / "fake_run.py"), scenario]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT)


def waits(run: dict[str, Any], steps: list[int]) -> dict[int, list[str]]:
    """The waits in these steps."""
    return {
        step: sorted(f"{wait['what']} ({wait['where']})" for wait in run["waits"] if wait["step"] == step)
        for step in steps
    }


def quiet_steps(run: dict[str, Any]) -> list[int]:
    """All steps except an epoch's first, when its order is copied to the device, and its last."""
    epoch = run["steps_per_epoch"]
    return [step for step in range(2 * epoch) if 0 < step % epoch < epoch - 1]


def assert_on_cuda(run: dict[str, Any]) -> None:
    assert run["status"] == "finished"
    assert run["steps"] == 2 * run["steps_per_epoch"]
    assert run["fused"]
    assert run["state_devices"] == ["cuda:0"]
    assert run["device"]["name"] == "fake GPU"
    assert run["device"]["max_memory_bytes"] == max(run["peaks"].values())


@pytest.mark.parametrize(("name", "quiet"), [("quiet", 6), ("quiet fp32", 6), ("options", 2)])
def test_host_does_not_wait_in_an_unmonitored_step(name, quiet):
    run = answer("tiny")[name]
    assert_on_cuda(run)
    steps = quiet_steps(run)
    assert len(steps) == quiet
    assert waits(run, steps) == {step: [] for step in steps}


def test_host_waits_for_a_monitored_step_only_when_reading_it():
    run = answer("tiny")["interrupted"]
    for step in quiet_steps(run):
        at_step = [wait for wait in run["waits"] if wait["step"] == step and wait["phase"] != "files"]
        assert {wait["phase"] for wait in at_step} == {"read"}
        assert set(READS) >= {wait["what"] for wait in at_step} >= {"cpu", "tolist"}
        assert len(at_step) <= len(READS)


def test_run_without_bias_correction_creates_its_step_counts_on_the_device():
    run = answer("tiny")["quiet"]
    assert not [wait for wait in run["waits"] if "optimizer" in wait["where"]]


def test_resumed_run_restores_its_state_on_the_device_and_its_random_state():
    run = answer("tiny")["resumed"]
    assert_on_cuda(run)
    assert run["restored"] == [["cpu", 16]]  # as torch.cuda.set_rng_state expects it


def test_monitor_takes_as_much_memory_as_the_weights_it_measures():
    sizes = answer("tiny")["quiet"]["bytes"]
    assert sizes["moments"] == 2 * sizes["parameters"]
    assert 0.9 * sizes["parameters"] < sizes["monitor"] <= sizes["parameters"]


@pytest.mark.slow
def test_run_without_a_planted_fault_is_quiet():
    assert answer("controls")["nothing"]["waits"] == {}


@pytest.mark.parametrize(
    ("fault", "what"),
    [("item", "item"), ("if", "__bool__"), ("list", "copy to the device"), ("transformers' mask", "__bool__")],
)
def test_planted_wait_is_detected(fault, what):
    assert answer("controls")[fault]["waits"] == {what: 1}


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("mask index", "nonzero"),  # the host would need its size
        ("mask in float32", "the mask is torch.float32, the query torch.bfloat16"),
        ("mask on the CPU", "the mask is on cpu, the query on cuda:0"),
        ("tensor on the CPU", "two devices, cuda:0 and cpu"),
        ("index on CUDA", "a CUDA index into a tensor on the CPU"),
    ],
)
def test_planted_mistake_is_an_error(fault, error):
    assert error in answer("controls")[fault]["error"]


def test_planted_leak_is_detected():
    runs = answer("controls")
    nine_leaks = 9 * 4_000_256  # nine updates before the last step's passes
    leaked, clean = (runs[name]["peaks"]["forward and backward"] for name in ("leak", "nothing"))
    assert leaked > nine_leaks > 5 * clean


@pytest.mark.slow
def test_article_step_waits_only_if_it_is_monitored():
    runs = answer("article")
    for run in runs.values():
        assert_on_cuda(run)
        assert run["largest_batch"] == [16, 256]
    steps = quiet_steps(runs["quiet"])
    assert len(steps) == 2
    assert waits(runs["quiet"], steps) == {step: [] for step in steps}
    for step in steps:
        phases = [wait["phase"] for wait in runs["monitored"]["waits"] if wait["step"] == step]
        assert phases in (2 * ["read"], 3 * ["read"])


@pytest.mark.slow
def test_article_run_takes_3_6_gb_with_and_without_monitoring():
    """Most of it is activations: torch and transformers decide which ones the backward pass keeps."""
    monitored, quiet = answer("article")["monitored"], answer("article")["quiet"]
    sizes = quiet["bytes"]
    assert sizes["parameters"] == pytest.approx(4 * quiet["parameters"], rel=1e-3)
    assert sizes["moments"] == pytest.approx(2 * sizes["parameters"])
    assert sizes["monitor"] < sizes["parameters"]
    assert monitored["peaks"]["forward and backward"] == pytest.approx(3.58e9, rel=0.02)
    assert quiet["peaks"]["forward and backward"] == pytest.approx(monitored["peaks"]["forward and backward"], rel=1e-3)
    assert max(monitored["peaks"], key=monitored["peaks"].get) == "forward and backward"
