"""Two signals that are not part of bertmon, measured at watched steps of a run: do they warn earlier?

- rate margin, every ten steps: the smallest multiple c of the update at which the loss of the same batch, in eval mode
  and float32, is higher than before the update (along the step, the critical sharpness of arXiv 2601.16979). c is
  searched among powers of 2, starting from the previous margin.
- token spread, one value per layer: standard deviation of a hidden state over the tokens of a text, divided by its root
  mean square; mean over at most 8 texts (rank collapse: Noci et al. 2022, arXiv 2206.03126). 0: all tokens are equal.

Training is unchanged, bit for bit. Shapes: B texts, T tokens, D width, L layers.
"""

import json
import lzma
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertmon.config import Precision
from bertmon.data.batches import Batch
from bertmon.monitor import stats
from bertmon.monitor.monitor import Monitor
from bertmon.monitor.probe import MAX_TEXTS
from bertmon.training import run_training
from bertmon.training.step import compute_logits

SIGNALS_FILE = "signals.json"
SIGNALS_STORE = Path(__file__).parent / "results" / "recorded_signals.json.xz"
MARGIN_EVERY = 10
MULTIPLES = [2.0**power for power in range(-4, 6)]
"""The multiples of an update that are tried; a margin beyond the last one is infinite."""


@dataclass(frozen=True)
class Signals:
    """The measurements at one step."""

    step: int
    rate_margin: float  # nan: not measured at this step
    token_spread: tuple[float, ...]  # [L + 1], from the embeddings to the last layer, before the update
    passes: int  # number of forward passes for the margin


@contextmanager
def recording() -> Iterator[list[Signals]]:
    """Measure these signals at every watched step of run_training within the context; they are appended to the list."""
    rows: list[Signals] = []
    build = run_training.build_monitor

    def build_recording_monitor(config: Any, task: Any, *arguments: Any, **options: Any) -> Monitor:
        monitor = build(config, task, *arguments, **options)
        _record(monitor, task.classifier, rows)
        return monitor

    with mock.patch.object(run_training, "build_monitor", build_recording_monitor):
        yield rows


def _record(monitor: Monitor, model: nn.Module, rows: list[Signals]) -> None:
    """Measure around each of the monitor's watched updates."""
    plain_update = monitor.update

    @contextmanager
    def update(step: int, batch: Batch, logits: Tensor | None = None) -> Iterator[None]:
        if not monitor.due(step):
            with plain_update(step, batch, logits):
                yield
            return
        spread = token_spreads(model, batch)
        trial = RateMargin(model, batch) if step % MARGIN_EVERY == 0 else None
        with plain_update(step, batch, logits):
            yield
        last = next((row.rate_margin for row in reversed(rows) if not math.isnan(row.rate_margin)), 1.0)
        margin = trial.measure(start=last) if trial else math.nan
        rows.append(Signals(step, margin, spread, trial.passes if trial else 0))

    monitor.update = update  # type: ignore[method-assign]


class RateMargin:
    """The margin of an update on a batch: create it before the update, and call `measure` after it."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self._model, self._batch = model, batch
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._before = [parameter.detach().clone() for parameter in self._parameters]
        self.passes = 0
        self._loss_before = self._loss()

    @torch.no_grad()
    def measure(self, start: float = 1.0) -> float:
        """The smallest of MULTIPLES at which the loss rises, searched from `start`; infinite if it never does.

        If the loss rises at `start`, the search goes down until it does not; otherwise it goes up until it does.
        """
        after = [parameter.detach().clone() for parameter in self._parameters]
        at = MULTIPLES.index(start) if start in MULTIPLES else len(MULTIPLES) - 1
        try:
            if self._rises(after, at):
                while at > 0 and self._rises(after, at - 1):
                    at -= 1
                return MULTIPLES[at]
            while at + 1 < len(MULTIPLES):
                at += 1
                if self._rises(after, at):
                    return MULTIPLES[at]
            return math.inf
        finally:
            torch._foreach_copy_(self._parameters, after)

    def _rises(self, after: list[Tensor], at: int) -> bool:
        torch._foreach_copy_(self._parameters, torch._foreach_lerp(self._before, after, MULTIPLES[at]))
        return not self._loss() <= self._loss_before  # nan counts as a rise

    def _loss(self) -> float:
        self.passes += 1
        with stats.eval_fp32(self._model):
            logits = compute_logits(self._model, self._batch, Precision.fp32)
            return F.cross_entropy(logits, self._batch.labels).item()


def token_spreads(model: nn.Module, batch: Batch) -> tuple[float, ...]:
    """Token spread of the embeddings and of every layer's output [L + 1], over the batch's first texts."""
    ids, mask = batch.input_ids[:MAX_TEXTS], batch.attention_mask[:MAX_TEXTS]
    with stats.eval_fp32(model):
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    return tuple(round(_spread(state, mask).mean().item(), 6) for state in states)


def _spread(state: Tensor, mask: Tensor) -> Tensor:
    """Token spread of hidden states [B, T, D] over the tokens with a mask [B, T] of 1, one value per text [B]."""
    weights = (mask / mask.sum(dim=1, keepdim=True))[:, :, None]
    mean = (weights * state).sum(dim=1, keepdim=True)
    variance = (weights * (state - mean).square()).sum(dim=1).mean(dim=1)
    return (variance / (weights * state.square()).sum(dim=1).mean(dim=1)).sqrt()


# --- files ---------------------------------------------------------------------------------------


def write_signals(rows: list[Signals], folder: Path) -> None:
    """Write the signals to SIGNALS_FILE in a run's folder."""
    (folder / SIGNALS_FILE).write_text(json.dumps([list(asdict(row).values()) for row in rows]))


def pack_signals(folder: Path, store: Path = SIGNALS_STORE) -> None:
    """Add the signals of all pretrained_grid.py runs in a folder to a compressed file."""
    by_setting = json.loads(lzma.decompress(store.read_bytes())) if store.exists() else {}
    for file in sorted(folder.glob(f"*/seed=0/{SIGNALS_FILE}")):
        by_setting[str(int(file.parent.parent.name))] = json.loads(file.read_text())
    store.write_bytes(lzma.compress(json.dumps(by_setting).encode(), preset=9))


def unpack_signals(store: Path = SIGNALS_STORE) -> dict[int, list[Signals]]:
    """The signals of every run, by setting."""
    by_setting = json.loads(lzma.decompress(store.read_bytes()))
    return {int(setting): [_from_json(row) for row in rows] for setting, rows in by_setting.items()}


def _from_json(row: list[Any]) -> Signals:
    step, rate_margin, spread, passes = row
    return Signals(step, rate_margin, tuple(spread), passes)
