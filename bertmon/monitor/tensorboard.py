"""A run's event file for TensorBoard: the only module that knows its tags and layout.

TensorBoard's own writer is not used, for two reasons. It computes checksums byte by byte in Python: 12 ms for the
figures of one step, in a thread that blocks training meanwhile (measured). And it has no exact position to return to: a
run that resumes truncates its files to their size at the checkpoint, so that no point is written twice.
"""

import itertools
import logging
import math
import os
import socket
import struct
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self

import google_crc32c
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import summary as summaries

from bertmon.errors import storage_errors
from bertmon.monitor import figure_process
from bertmon.monitor.figure_process import PngByTag
from bertmon.monitor.history import STATISTICS, Snapshot

log = logging.getLogger(__name__)

_HEADLINES = {
    "loss/train": "Headlines/loss_train",
    "loss/test": "Headlines/loss_test",
    "accuracy/test": "Headlines/accuracy_test",
}
"""Written twice, so that TensorBoard, which sorts groups by name, shows them above hundreds of curves of weights."""

_LOG10 = {
    "depth_ratio": "Headlines/log10_depth_ratio",
    "logit_std": "Headlines/log10_logit_std",
    "update_per_lr/linear": "Headlines/log10_update_per_lr",
    "effective_learning_rate": "Headlines/log10_effective_learning_rate",
}
"""Signals that change by powers of ten, which TensorBoard's linear axes and its clipping of outliers would hide."""

_LAYOUT = {
    "Overview": {
        "loss": ["Multiline", ["loss/train", "loss/test"]],
        "accuracy": ["Multiline", ["accuracy/test"]],
        "learning rate, nominal and effective": ["Multiline", ["^learning_rate$", "^effective_learning_rate$"]],
        "log10 of the depth ratio of gradients": ["Multiline", [_LOG10["depth_ratio"]]],
        "log10 of the standard deviation of logits": ["Multiline", [_LOG10["logit_std"]]],
        "log10 of the update per learning rate": ["Multiline", [_LOG10["update_per_lr/linear"]]],
    }
}
"""The charts on TensorBoard's page of custom scalars."""

Positions = Mapping[str, int]
"""Size of each event file at some point, in bytes, by file name."""

_file_numbers = itertools.count()


class EventFile:
    """A new event file in `folder`, which is created if missing. Every event is in the file when `write` returns.

    Raises StorageError if it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        # Other readers of event files (W&B) parse the seconds in the name as an integer.
        number = f"{next(_file_numbers):06d}"  # TensorBoard reads files in the order of their names
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{number}"
        self.path = folder / name
        with storage_errors(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("xb", buffering=0)
        weakref.finalize(self, self._file.close)  # a training loop that raises does not close it
        self._write(Event(file_version="brain.Event:2"))

    def write(self, summary: Summary, step: int = 0) -> None:
        """Add a summary at a step."""
        self._write(Event(summary=summary, step=step))

    def position(self) -> int:
        """Sync the file to disk; returns its size in bytes."""
        with storage_errors(self.path):
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file; nothing can be written afterwards."""
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        record = length + _masked_crc(length) + content + _masked_crc(content)
        with storage_errors(self.path):
            while record:  # a nearly full disk can take only a part
                record = record[self._file.write(record) :]


class RunWriter:
    """Writes one run's event file into `run_dir`. As a context manager it waits for the last figure on exit.

    draw: also write the figures of each snapshot, as soon as they are drawn.
    truncate_to: the `positions` of the folder's event files at the checkpoint that the run resumes from. Everything
    written later is removed. on_figure: called with the step, tag and PNG file of each figure.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        draw: bool = True,
        truncate_to: Positions | None = None,
        on_figure: Callable[[int, str, bytes], None] | None = None,
    ) -> None:
        self._on_figure = on_figure
        self._earlier = {} if truncate_to is None else _truncate(run_dir, truncate_to)
        self._file = EventFile(run_dir)
        if not self._earlier:
            self._file.write(summaries.custom_scalars(_LAYOUT))
        self._drawer = figure_process.shared() if draw else None
        self._figures: deque[tuple[int, Future[PngByTag]]] = deque()  # by step; not yet written

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def positions(self) -> Positions:
        """Sizes of all event files of the run, once the figures of every snapshot so far are written."""
        self.wait_for_figures()
        return {**self._earlier, self._file.path.name: self._file.position()}

    def wait_for_figures(self) -> None:
        """Return once the figures of every snapshot so far are written."""
        self._write_figures(wait=True)

    def close(self) -> None:
        """Wait for the figures that are not drawn yet and write them; nothing can be written afterwards."""
        try:
            self._write_figures(wait=True)
        finally:
            self._file.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one point for each tag, and for its copy among the headlines."""
        copies = {_HEADLINES[tag]: value for tag, value in values.items() if tag in _HEADLINES}
        copies |= {_LOG10[tag]: math.log10(value) for tag, value in values.items() if tag in _LOG10 and value > 0}
        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in {**values, **copies}.items()]
        self._file.write(Summary(value=points), step)

    def snapshot(self, snapshot: Snapshot) -> None:
        """Write every statistic of every weight as `statistic/weight`, and the figures."""
        self.scalars(
            snapshot.step,
            {
                f"{statistic}/{label}": value
                for statistic in STATISTICS
                for label, value in zip(snapshot.layers.labels, snapshot[statistic], strict=True)
            },
        )
        if self._drawer:
            self._figures.append((snapshot.step, self._drawer.submit(snapshot)))
            self._write_figures(wait=False)

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Write a text verbatim, in a fixed-width font."""
        indented = "\n".join(f"    {line}" for line in text.splitlines())  # markdown's code block
        self._file.write(summaries.text(tag, indented), step)

    def hparams(
        self, settings: Mapping[str, object], logged: Mapping[str, float], unlogged: Mapping[str, float]
    ) -> None:
        """Write a row of the HPARAMS table. Its metrics are the last points of scalars; `unlogged` get one at step 0.

        Written into this run's own event file: SummaryWriter.add_hparams would create a second run.
        """
        self.scalars(0, unlogged)
        plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in settings.items()}
        for summary in summaries.hparams(plain, {**logged, **unlogged}):
            self._file.write(summary)

    def _write_figures(self, *, wait: bool) -> None:
        """Write figures in the order of their steps: those drawn so far, or all of them with `wait`.

        An error is logged and ends the drawing for this run: training matters more than its figures.
        """
        while self._figures and (wait or self._figures[0][1].done()):
            step, drawn = self._figures.popleft()
            try:
                figures = drawn.result()
            except Exception as error:
                log.error("could not draw the figures of step %d (%r); this run gets no more figures", step, error)
                self._drawer = None
                self._figures.clear()
                return
            for tag, png in figures.items():
                image = Summary.Image(encoded_image_string=png, colorspace=3)
                self._file.write(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
                if self._on_figure:
                    self._on_figure(step, tag, png)


def _truncate(run_dir: Path, positions: Positions) -> Positions:
    """Truncate the folder's event files to their positions and remove later files; returns the resulting positions."""
    remaining: dict[str, int] = {}
    for file in sorted(run_dir.glob("events.out.tfevents.*")):
        position = positions.get(file.name)
        with storage_errors(file):
            if position is None:
                file.unlink()
                continue
            size = file.stat().st_size
            if size >= position:
                os.truncate(file, position)
        if size < position:
            log.warning("%s lost %d bytes since the checkpoint: its last points are missing.", file, position - size)
        remaining[file.name] = min(position, size)
    return remaining


def _masked_crc(data: bytes) -> bytes:
    """CRC-32C, masked as in TensorFlow's record format (tensorflow/core/lib/hash/crc32c.h)."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
