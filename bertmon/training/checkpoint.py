"""One atomic file that training resumes from: weights, optimizer, random states, history, and typed metadata.

A safetensors file, never a pickle. The SHA-256 of each tensor and of the metadata is stored in its header and verified
when the file is read.
"""

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bertmon.errors import StorageError
from bertmon.storage import atomic_path
from bertmon.training.state import TrainState

CHECKPOINT_FILE = "checkpoint.safetensors"
_HISTORY = "more.history"


class CorruptCheckpointError(Exception):
    """The file is not a complete checkpoint: truncated, modified or of another kind. The message names it."""


@dataclass(frozen=True, slots=True)
class CheckpointMetadata:
    """The contents of a checkpoint except tensors."""

    identity: Mapping[str, Any]  # config.run_identity of the run
    fingerprint: str  # of its data
    state: TrainState
    monitor: Mapping[str, Any]  # Monitor.state_dict()
    event_files: Mapping[str, Any]  # RunWriter.positions()

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of dataclasses.asdict. Raises KeyError, TypeError and ValueError."""
        return cls(**{**fields, "state": TrainState.from_dict(fields["state"])})


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, metadata: CheckpointMetadata, history: bytes
) -> None:
    """Replace the checkpoint at `path`. history: History.to_bytes(). Raises OSError."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for row, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{row}.{name}": value for name, value in state.items()}
    tensors[_HISTORY] = torch.frombuffer(bytearray(history), dtype=torch.uint8)
    random_tensors, random_header = _random_states(next(model.parameters()).device)
    tensors = _untie({name: value.detach().cpu().contiguous() for name, value in (tensors | random_tensors).items()})
    header = {"metadata": json.dumps(asdict(metadata)), "random": random_header}
    header["sha256"] = json.dumps(_checksums(header, tensors))
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=header)
        except SafetensorError as error:  # raised for a full disk
            raise OSError(str(error)) from None


class Checkpoint:
    """A checkpoint, read and verified.

    Raises CorruptCheckpointError if the file is not a complete checkpoint, FileNotFoundError if there is none, and
    StorageError if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(path)
        if not path.is_file():  # reading a FIFO would block
            raise CorruptCheckpointError(f"{path}: corrupt checkpoint (not a file).")
        _require_readable(path)
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                checksums = json.loads(header.pop("sha256"))
                self._tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.metadata = CheckpointMetadata.from_dict(json.loads(header["metadata"]))
            self._random = json.loads(header["random"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise CorruptCheckpointError(f"{path}: corrupt checkpoint ({type(error).__name__}: {error}).") from None
        if checksums != _checksums(header, self._tensors):
            raise CorruptCheckpointError(f"{path}: corrupt checkpoint (its checksums do not match).")

    @property
    def history(self) -> bytes:
        """For History.from_bytes."""
        return self._tensors[_HISTORY].numpy().tobytes()

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Restore weights, moments and random states bit for bit. Raises RuntimeError if the shapes differ."""
        model.load_state_dict(self._with_prefix("model."))
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in self._with_prefix("optimizer.").items():
            row, _, name = key.partition(".")
            states.setdefault(int(row), {})[name] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": states, "param_groups": groups})
        torch.set_rng_state(self._tensors["random.torch"])
        device = next(model.parameters()).device
        if device.type == "cuda" and "random.cuda" in self._tensors:  # possibly a different GPU
            torch.cuda.set_rng_state(self._tensors["random.cuda"], device)
        keys = self._tensors["random.numpy"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", keys, *self._random["numpy"]))
        version, numbers, gauss = self._random["python"]
        random.setstate((version, tuple(numbers), gauss))

    def _with_prefix(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in self._tensors.items() if name.startswith(prefix)}


def _require_readable(path: Path) -> None:
    """Raise StorageError for a file that cannot be read, which can be intact; safetensors does not say why."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise StorageError(f"could not read {path}: {error.strerror or error}.") from None


def _untie(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with copies of those that share memory, such as tied weights, which safetensors rejects."""
    seen: set[int] = set()
    unshared = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        unshared[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return unshared


def _random_states(device: torch.device) -> tuple[dict[str, Tensor], str]:
    """The global random states of torch, numpy and Python: tensors, and the rest as JSON."""
    tensors = {"random.torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    _, keys, *numpy_rest = np.random.get_state(legacy=True)
    tensors["random.numpy"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    return tensors, json.dumps({"python": random.getstate(), "numpy": numpy_rest})


def _checksums(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    texts = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in header.items()}
    return texts | {name: _sha256(value) for name, value in tensors.items()}


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.view(-1).view(torch.uint8).numpy().data if tensor.numel() else b"").hexdigest()
