"""Tensors on "cuda" that have shapes, dtypes and a device but no data, in a build of torch without CUDA.

Real: all Python code of bertmon, transformers and torch, autograd, autocast's rules for CUDA, the device and dtype of
every result, and the lifetime of every tensor. Not real: values, kernels, streams, random states, torch.compile, and
waits within kernels. Private names of torch and transformers are used only in `fake_cuda` and ledger.py: expect to fix
these at an upgrade. The versions they were written for are in constraints.txt.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import preload
import torch
import torch.nn.functional as F
from ledger import Answers, Ledger, Operations
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _foreach_utils

assert preload.LIBRARY.register_device() == 1, "torch looked for its CUDA hooks before the library was loaded"

DEVICE_NAME = "fake GPU"
RANDOM_STATE_BYTES = 16

attention_kernels: Counter[str] = Counter()
"""Calls of each attention kernel, by name, dtype and mask."""
restored_random_states: list[tuple[str, int]] = []
"""Device and bytes of each state passed to torch.cuda.set_rng_state."""


class _Mode(FakeTensorMode):
    """Does not initialize CUDA although torch.cuda.is_available() is replaced to return True."""

    @property
    def avoid_device_init(self) -> bool:
        return True


@contextlib.contextmanager
def fake_cuda(ledger: Ledger) -> Iterator[None]:
    """One GPU that computes nothing, in the body; the ledger records what happens on it."""
    from transformers.utils import import_utils

    replaced: dict[tuple[Any, str], Any] = {
        (torch.cuda, "is_available"): lambda: True,
        (torch.cuda, "device_count"): lambda: 1,
        (torch.cuda, "current_device"): lambda: 0,
        (torch.cuda, "set_device"): lambda device: None,
        (torch.cuda, "get_device_name"): lambda device=None: DEVICE_NAME,
        (torch.cuda, "is_bf16_supported"): lambda including_emulation=True: True,
        (torch.cuda, "is_tf32_supported"): lambda: True,
        (torch.cuda, "reset_peak_memory_stats"): lambda device=None: None,
        (torch.cuda, "max_memory_allocated"): lambda device=None: max(ledger.peaks.values()),
        (torch.cuda, "get_rng_state"): lambda device="cuda": torch.zeros(RANDOM_STATE_BYTES, dtype=torch.uint8),
        (torch.cuda, "set_rng_state"): _set_rng_state,
        (torch.accelerator, "current_accelerator"): lambda check_available=False: None,  # is a graph being captured?
        (_foreach_utils, "_foreach_supported_types"): [Tensor, FakeTensor],  # else norms are computed one by one
        (FakeTensor, "tolist"): lambda tensor: _tolist(ledger, tensor),
        (F, "scaled_dot_product_attention"): _attention,
        (nn.Module, "to"): _to,
        (import_utils, "is_fake_tensor"): lambda tensor: False,  # else transformers reads less from the device
    }
    with contextlib.ExitStack() as stack:
        for (owner, name), value in replaced.items():
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        stack.enter_context(_Mode(allow_non_fake_inputs=True))
        stack.enter_context(Operations(ledger))
        stack.enter_context(Answers(ledger))
        yield


def _set_rng_state(state: Tensor, device: Any = "cuda") -> None:
    restored_random_states.append((state.device.type, state.numel()))


def _tolist(ledger: Ledger, tensor: Tensor) -> Any:
    if tensor.is_cuda:
        ledger.wait("tolist")
    values: Any = 1.25
    for size in reversed(tensor.shape):
        values = [values] * size
    return values


def _to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """nn.Module.to with new parameters: torch's would swap fake ones in place, which weak references prevent."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = parameter.detach().to(*args, **kwargs)
                part._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(*args, **kwargs)
    return module


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The kernel that torch's sdp_utils.cpp chooses on an H100, forward and backward by its meta functions.

    The choice itself is compiled only into builds with CUDA. cuDNN, which comes first there, supports neither dropout
    rates that are not multiples of 1/16 nor deterministic algorithms; the memory-efficient kernel, whose tensors are
    alike, stands in for it.
    """
    half, head = query.dtype in (torch.float16, torch.bfloat16), query.shape[-1]
    assert head % (8 if half else 4) == 0, f"a head of {head} would take the slow kernel"
    if attn_mask is not None:
        attn_mask = _additive(attn_mask, query)
    cudnn = half and (16 * dropout_p) % 1 == 0 and not torch.are_deterministic_algorithms_enabled()
    flash = half and attn_mask is None and not cudnn
    name = "cudnn" if cudnn else "flash" if flash else "memory-efficient"
    attention_kernels[f"{name}, {str(query.dtype)[6:]}, {'no mask' if attn_mask is None else 'mask'}"] += 1
    if flash:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention
        flash_output: Tensor = kernel(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
        return flash_output
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    keeps_logsumexp = torch.is_grad_enabled() and query.requires_grad
    output: Tensor = kernel(query, key, value, attn_mask, keeps_logsumexp, dropout_p, is_causal, scale=scale)[0]
    return output


def _additive(mask: Tensor, query: Tensor) -> Tensor:
    """The mask as the kernel adds it: [B, heads, T, T], rows padded to multiples of eight."""
    assert mask.device == query.device, f"the mask is on {mask.device}, the query on {query.device}"
    assert mask.dtype in (torch.bool, query.dtype), f"the mask is {mask.dtype}, the query {query.dtype}"
    if mask.dtype is torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), -torch.inf)
    width = mask.shape[-1]
    if width % 8:
        mask = F.pad(mask, (0, 8 - width % 8))[..., :width]
    return mask.expand(*query.shape[:3], width)
