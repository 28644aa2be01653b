"""The only file that knows TensorBoard's tags: how a number, a picture and a text get into an event file."""

import hashlib
import logging
import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import summary as summaries

from bertmon.monitor import figure_process
from bertmon.monitor.eventfile import EventFile
from bertmon.monitor.figure_process import PngByTag
from bertmon.monitor.history import STATISTICS, Snapshot

log = logging.getLogger(__name__)

_LAYOUT = {
    "first of all": {
        "loss": ["Multiline", ["loss/train", "loss/test"]],
        "accuracy": ["Multiline", ["accuracy/test"]],
        "learning rate, nominal and effective": ["Multiline", ["learning_rate", "effective_learning_rate"]],
        "gradient depth ratio": ["Multiline", ["depth_ratio"]],
        "logit standard deviation": ["Multiline", ["logit_std"]],
    }
}
"""The charts that people need first, for TensorBoard's page of custom scalars."""

Positions = Mapping[str, Sequence[Any]]
"""How much of each event file was written at some moment: its bytes and their SHA-256, by name."""


class RunWriter:
    """Writes one run's event file into `folder`. Use as a context manager: leaving it waits for the last figure.

    truncate_to: what the folder's event files had in them at the moment that the run goes on from, as `marks` told it. What
    was written after that is taken away, so that no point stands there twice.
    """

    def __init__(self, folder: Path, *, draw: bool = True, truncate_to: Positions | None = None) -> None:
        self._before = {} if truncate_to is None else _truncate(folder, truncate_to)
        self._file = EventFile(folder)
        if not self._before:
            self._file.write(summaries.custom_scalars(_LAYOUT))
        self._drawer = figure_process.shared() if draw else None
        self._drawn: deque[tuple[int, Future[PngByTag]]] = deque()  # or about to be, by step

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def positions(self) -> Positions:
        """Of each of the folder's event files, the figures that are still being drawn included."""
        self._images(wait=True)
        return {**self._before, self._file.path.name: self._file.position()}

    def close(self) -> None:
        """Write what is still being drawn; nothing can be written after that."""
        try:
            self._images(wait=True)
        finally:
            self._file.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One point for each tag."""
        self._file.write(
            Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]), step
        )

    def snapshot(self, snapshot: Snapshot) -> None:
        """Every statistic of every layer as `statistic/layer`, and the two figures, these as soon as they are drawn."""
        self.scalars(
            snapshot.step,
            {
                f"{statistic}/{layer}": value
                for statistic in STATISTICS
                for layer, value in zip(snapshot.layers.labels, snapshot[statistic], strict=True)
            },
        )
        if self._drawer:
            self._drawn.append((snapshot.step, self._drawer.submit(snapshot)))
            self._images(wait=False)

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """A text as it is, shown in a fixed-width font."""
        indented = "\n".join(f"    {line}" for line in text.splitlines())  # markdown's code block
        self._file.write(summaries.text(tag, indented), step)

    def hparams(self, settings: Mapping[str, object], metrics: Mapping[str, float]) -> None:
        """Settings for the HPARAMS table; its metrics are the last points of the scalars named.

        Written into this run's own event file: SummaryWriter.add_hparams would make a second run.
        """
        plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in settings.items()}
        for summary in summaries.hparams(plain, dict(metrics)):
            self._file.write(summary)

    def _images(self, *, wait: bool) -> None:
        """Write the figures that are drawn, in the order of their steps; wait: also those that are not yet."""
        while self._drawn and (wait or self._drawn[0][1].done()):
            step, drawn = self._drawn.popleft()
            for tag, png in drawn.result().items():
                image = Summary.Image(encoded_image_string=png, colorspace=3)
                self._file.write(Summary(value=[Summary.Value(tag=tag, image=image)]), step)


def _truncate(folder: Path, marks: Positions) -> Positions:
    """Cut the folder's event files to their marks; returns the marks of those that are left.

    A file that is not what it was then is told and set aside, one that came later is taken away.
    """
    left: dict[str, Sequence[Any]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        if file.name not in marks:
            file.unlink()
            continue
        size, sha = marks[file.name]
        with file.open("rb") as opened:
            content = opened.read(size)
        if hashlib.sha256(content).hexdigest() == sha:
            os.truncate(file, size)
            left[file.name] = marks[file.name]
        else:
            aside = file.with_name(f"damaged.{file.name}".replace("tfevents", "events"))
            file.replace(aside)
            log.warning(f"{file} is damaged, and is now {aside.name}: its points are missing in TensorBoard.")
    return left
