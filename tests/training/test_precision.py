"""The precision of float32 products in runs and in the probe: only flags, which builds without CUDA have too."""

import logging
import os
import subprocess
import sys

import pytest
import torch
from conftest import TIMEOUT

from bertmon.config import Precision
from bertmon.monitor.stats import eval_fp32
from bertmon.training.run_training import run_training
from bertmon.training.step import set_determinism, set_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def flags() -> tuple[str, str, str]:
    """The precision of float32 matrix products on CUDA, on the CPU, and in general."""
    backends = torch.backends
    return backends.cuda.matmul.fp32_precision, backends.mkldnn.matmul.fp32_precision, backends.fp32_precision


@pytest.fixture(autouse=True)
def _restore_flags():
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")


def set_high() -> None:
    torch.set_float32_matmul_precision("high")


def set_medium() -> None:
    torch.set_float32_matmul_precision("medium")


def set_all_backends() -> None:  # like transformers' Trainer(tf32=True)
    torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"
    torch.backends.fp32_precision = "tf32"


def set_only_cuda() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def set_both_apis() -> None:
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.matmul.fp32_precision = "ieee"


def legacy_flag() -> object:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # the new flags are set and the old ones are not
        return None


@pytest.mark.parametrize("set_flags", [set_high, set_medium, set_all_backends, set_only_cuda, set_both_apis])
def test_eval_fp32_switches_tf32_off_and_restores_the_flags(set_flags):
    set_flags()
    before = flags(), legacy_flag()
    assert before != (("ieee", "ieee", "none"), "highest")
    with eval_fp32(torch.nn.Linear(1, 1)):
        assert flags()[:2] == ("ieee", "ieee")
    assert (flags(), legacy_flag()) == before


def test_eval_fp32_keeps_flags_following_the_general_one():
    set_all_backends()
    with eval_fp32(torch.nn.Linear(1, 1)):
        pass
    torch.backends.fp32_precision = "ieee"
    assert flags() == ("ieee", "ieee", "ieee")


def test_eval_fp32_restores_after_an_error():
    set_high()
    with pytest.raises(ZeroDivisionError), eval_fp32(torch.nn.Linear(1, 1)):
        raise ZeroDivisionError
    assert legacy_flag() == "high"


def test_both_sets_of_flags_agree_in_eval_fp32_so_that_inductor_can_read_them():
    set_high()
    with eval_fp32(torch.nn.Linear(1, 1)):
        assert torch.backends.cuda.matmul.allow_tf32 is False  # raises where they disagree


@pytest.mark.parametrize(
    ("precision", "expected"), [(Precision.fp32, "ieee"), (Precision.bf16, "ieee"), (Precision.tf32, "tf32")]
)
def test_run_sets_the_precision_of_its_config_whatever_was_set_before(settings, tmp_path, precision, expected):
    (set_high if expected == "ieee" else set_only_cuda)()
    settings.train.precision = precision
    settings.train.epochs = 1
    settings.monitor.figures = False
    run_training(settings, tmp_path / "run", name="run")
    assert flags()[0] == expected
    assert torch.backends.cuda.matmul.allow_tf32 is (expected == "tf32")


def test_fp32_is_ieee_even_if_the_environment_enables_tf32():
    """NVIDIA's containers set this variable."""
    code = (
        "import torch; from bertmon.training.step import *; print(torch.backends.cuda.matmul.allow_tf32);"
        "set_precision(Precision.fp32, torch.device('cpu')); print(torch.backends.cuda.matmul.allow_tf32)"
    )
    environment = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=TIMEOUT
    )
    assert process.stdout.split() == ["True", "False"]


@pytest.mark.parametrize(
    ("precision", "device", "warning"),
    [
        (Precision.tf32, CPU, "train.precision=tf32"),
        (Precision.tf32, CUDA, "train.precision=tf32"),
        (Precision.bf16, CUDA, "train.precision=bf16"),
        (Precision.bf16, CPU, None),
        (Precision.fp32, CUDA, None),
    ],
)
def test_precision_that_the_device_lacks_gives_one_warning(precision, device, warning, monkeypatch, caplog):
    requests = []

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        requests.append(including_emulation)
        return including_emulation  # as on a T4

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    monkeypatch.setattr(torch.version, "hip", None)
    with caplog.at_level(logging.WARNING, logger="bertmon"):
        set_precision(precision, device)
    assert [record.message.split(":")[0] for record in caplog.records] == ([warning] if warning else [])
    assert True not in requests  # emulation is the slow path that the warning is about


def test_gpu_with_tf32_and_bfloat16_gives_no_warning(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.version, "hip", None)
    for precision in Precision:
        set_precision(precision, CUDA)
    assert not caplog.records


def test_nondeterministic_run_prepares_cublas_for_a_deterministic_one(monkeypatch):
    """cuBLAS of older versions reads the variable once in a process."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    set_determinism(False)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize(("device", "enabled"), [(CUDA, False), (torch.device("cpu"), True)])
def test_cudnns_attention_is_off_on_cuda(device, enabled):
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        set_precision(Precision.fp32, device)
        assert torch.backends.cuda.cudnn_sdp_enabled() is enabled
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
