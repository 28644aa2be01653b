"""A record of a run on tensors without data: waits of the host, kernel launches, and memory in use.

A TorchDispatchMode sees every operation that torch passes to a kernel; a TorchFunctionMode sees the values that the
host reads and returns made-up numbers.
"""

import sys
import weakref
from collections import Counter
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

_ALLOCATION = 512
"""CUDA's allocator rounds sizes up to multiples of this many bytes."""
_SYNCHRONIZING = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim"}
_SYNCHRONIZING |= {"unique_consecutive", "bincount", "histc", "repeat_interleave"}
"""Operations for which the host needs the size or the value of the result."""
_NO_KERNEL = {"view", "_unsafe_view", "_reshape_alias", "t", "transpose", "permute", "expand", "slice", "select"}
_NO_KERNEL |= {"unsqueeze", "squeeze", "detach", "alias", "as_strided", "split", "split_with_sizes", "unsafe_split"}
_NO_KERNEL |= {"unbind", "lift_fresh", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
_COPIES = {"_to_copy", "copy_", "_copy_from"}
_SOURCES = ("/bertmon/", "/transformers/", "/torch/optim/", "/torch/nn/utils/")


class Ledger:
    """Waits and kernel launches by step and phase, and peak memory by phase."""

    def __init__(self) -> None:
        self.step = -1  # before the first one
        self.phase = "build"
        self.waits: list[dict[str, Any]] = []  # step, phase, what, where
        self.kernels: Counter[tuple[int, str]] = Counter()
        self.peaks: dict[str, int] = {}  # most bytes in use at a time, by phase
        self.alive = 0
        self._sizes: dict[int, int] = {}

    def wait(self, what: str) -> None:
        self.waits.append({"step": self.step, "phase": self.phase, "what": what, "where": _line()})

    def allocate(self, tensor: torch.Tensor) -> None:
        """Count the tensor's storage until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = allocated_bytes(tensor)
        self.alive += self._sizes[key]
        weakref.finalize(storage, self._free, key)
        self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), self.alive)

    def _free(self, key: int) -> None:
        self.alive -= self._sizes.pop(key)


def allocated_bytes(tensor: torch.Tensor) -> int:
    """Bytes that the tensor's storage takes on a GPU."""
    return -(-tensor.untyped_storage().nbytes() // _ALLOCATION) * _ALLOCATION


def _line() -> str:
    """The innermost lines of the stack in a library and in bertmon."""
    places: dict[str, str] = {}
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        for part in _SOURCES:
            if part in name:
                places.setdefault(part, f"{part.strip('/')}/{name.rsplit(part, 1)[1]}:{frame.f_lineno}")
        frame = frame.f_back
    own = places.pop("/bertmon/", "?")
    return " < ".join([*list(places.values())[:1], own])


class Operations(TorchDispatchMode):
    """Records what every operation on a CUDA tensor would do on a real GPU."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = function.overloadpacket.__name__
        if name == "device":  # not an operation: C++ asks where a tensor is
            return result
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, FakeTensor)]
        if not any(tensor.is_cuda for tensor in (*inputs, *outputs)):
            return result
        self._count(name)
        if name in _INDEXING:
            self._check_indices(name, args[0], [index for index in args[1] if index is not None])
        if name in _COPIES:
            source, target = (args[1], args[0]) if name == "copy_" else (args[0], result)
            if source.device != target.device and not kwargs.get("non_blocking"):
                self._ledger.wait("copy to the device" if target.is_cuda else "copy to the host")
        for tensor in outputs:
            if tensor.is_cuda:
                self._ledger.allocate(tensor)
        return result

    def _count(self, name: str) -> None:
        if name not in _NO_KERNEL:
            self._ledger.kernels[self._ledger.step, self._ledger.phase] += 1
        if name in _SYNCHRONIZING:
            self._ledger.wait(name)

    def _check_indices(self, name: str, indexed: torch.Tensor, indices: list[torch.Tensor]) -> None:
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            self._ledger.wait("index by a mask")
        if any(not index.is_cuda for index in indices):
            self._ledger.wait("copy to the device")
        if not indexed.is_cuda:  # fake tensors allow this
            raise RuntimeError(f"{name}: a CUDA index into a tensor on the CPU")


class Answers(TorchFunctionMode):
    """Answers and records the host's reads of CUDA tensors. Tensors on the CPU that have data are left alone."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        tensor = args[0] if args else None
        if isinstance(tensor, FakeTensor) and tensor.is_cuda:
            answers = {"item": 1.25, "__float__": 1.25, "__int__": 1, "__index__": 1, "__bool__": True}
            if name in answers:
                self._ledger.wait(name)
                return answers[name]
            if name in ("cpu", "numpy", "tolist"):
                self._ledger.wait(name)
                with _disable_current_modes():
                    values = torch.full(tuple(tensor.shape), 1.25).to(tensor.dtype)
                    return values if name == "cpu" else getattr(values, name)()
        if name in ("numpy", "tolist", "item") and type(tensor) is torch.Tensor:
            with _disable_current_modes():
                return function(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))
