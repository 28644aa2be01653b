"""One atomic file that training can go on from: weights, optimizer, random states, and what the caller adds.

Written to a temporary name and renamed, so that the last whole one is there at every moment. It is a safetensors file,
never a pickle; the SHA-256 of each tensor and of what else is told stands in its header and is checked when it is read.
"""

import hashlib
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

CHECKPOINT_FILE = "checkpoint.safetensors"


class CorruptCheckpointError(Exception):
    """A file that is no whole checkpoint: truncated, changed or foreign. The message says which and why."""


def save(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, about: Mapping[str, Any], **more: bytes
) -> None:
    """Replace the checkpoint at `path`. about: anything that JSON can say; more: anything else. Raises OSError."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for row, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{row}.{name}": value for name, value in state.items()}
    tensors["random.torch"] = torch.get_rng_state()
    device = next(model.parameters()).device
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    _, keys, *numpy_rest = np.random.get_state(legacy=True)
    tensors["random.numpy"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    tensors |= {
        f"more.{name}": torch.frombuffer(bytearray(content), dtype=torch.uint8) for name, content in more.items()
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {
        "about": json.dumps(about),
        "random": json.dumps({"python": random.getstate(), "numpy": numpy_rest}),
    }
    header["sha256"] = json.dumps(_checksums(header, tensors))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            save_file(tensors, temporary, metadata=header)
        except SafetensorError as error:  # its own name for a disk that is full
            raise OSError(str(error)) from None
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Checkpoint:
    """A checkpoint that was read and found whole. Raises CheckpointError otherwise, FileNotFoundError without one."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(path)
        try:
            if not path.is_file():  # a pipe would never end
                raise OSError("it is no file")
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                sums = json.loads(header.pop("sha256"))
                self._tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.about: dict[str, Any] = json.loads(header["about"])
            self._random = json.loads(header["random"])
        except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
            raise CorruptCheckpointError(f"{path} is no whole checkpoint: {error}") from None
        if sums != _checksums(header, self._tensors):
            raise CorruptCheckpointError(f"{path} is damaged: its checksums do not match.")

    def blob(self, name: str) -> bytes:
        """What was added under that name."""
        return self._tensors[f"more.{name}"].numpy().tobytes()

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put weights, moments and random states back, bit for bit."""
        model.load_state_dict(self._of("model."))
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in self._of("optimizer.").items():
            row, _, name = key.partition(".")
            states.setdefault(int(row), {})[name] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": states, "param_groups": groups})
        torch.set_rng_state(self._tensors["random.torch"])
        device = next(model.parameters()).device
        if device.type == "cuda" and "random.cuda" in self._tensors:  # it may be another GPU than before
            torch.cuda.set_rng_state(self._tensors["random.cuda"], device)
        keys = self._tensors["random.numpy"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", keys, *self._random["numpy"]))
        version, numbers, gauss = self._random["python"]
        random.setstate((version, tuple(numbers), gauss))

    def _of(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in self._tensors.items() if name.startswith(prefix)}


def _checksums(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    told = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in header.items()}
    return told | {name: _sha256(value) for name, value in tensors.items()}


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.view(-1).view(torch.uint8).numpy().data if tensor.numel() else b"").hexdigest()
