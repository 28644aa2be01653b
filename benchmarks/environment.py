"""Common setup of the benchmarks: a composed config, the device, and a line that describes machine and versions."""

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from bertmon.config import RunConfig
from bertmon.launch.compose import load_config

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def compose_config(overrides: Sequence[str]) -> RunConfig:
    """The config of `python -m bertmon.run OVERRIDE...`; the last of several values for a key wins."""
    return load_config(overrides)


def describe() -> str:
    """GPU name, or CPU and number of threads; torch version; commit."""
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    device = torch.cuda.get_device_name() if CUDA else f"{platform.machine()}, {torch.get_num_threads()} threads"
    return f"{device}, torch {torch.__version__}, {commit.stdout.strip()}"
