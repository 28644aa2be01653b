"""The only file that knows TensorBoard: tags, and how a number, a picture and a text get into an event file."""

import logging
import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import SummaryWriter

from bertmon.monitor import STATISTICS, Snapshot, drawer
from bertmon.monitor.drawer import Pictures

log = logging.getLogger(__name__)

_FIRST = {
    "first of all": {
        "loss": ["Multiline", ["loss/train", "loss/test"]],
        "accuracy": ["Multiline", ["accuracy/test"]],
        "learning rate, nominal and effective": ["Multiline", ["learning_rate", "effective_learning_rate"]],
        "depth profile of the gradients": ["Multiline", ["depth_profile"]],
        "spread of the logits": ["Multiline", ["logit_spread"]],
    }
}
"""The charts that people need first, for TensorBoard's page of custom scalars."""


class RunWriter:
    """Writes one run's event file into `folder`. Use as a context manager: leaving it writes out what is buffered.

    rewind: sizes of the event files that are there, by name, at the moment that the run goes on from, as `sizes` told
    them. What was written after that is taken away, so that no point stands there twice.
    """

    def __init__(self, folder: Path, *, draw: bool = True, rewind: Mapping[str, int] | None = None) -> None:
        self._folder = folder
        for file in _event_files(folder) if rewind is not None else ():
            if rewind and file.name in rewind:
                if file.stat().st_size < rewind[file.name]:
                    log.warning(f"{file} has lost its end: some points before the checkpoint are missing")
                else:
                    os.truncate(file, rewind[file.name])
            else:
                file.unlink()
        self._writer = SummaryWriter(str(folder))
        if not rewind:
            self._writer.add_custom_scalars(_FIRST)
        self._drawer = drawer.shared() if draw else None
        self._drawn: deque[tuple[int, Future[Pictures]]] = deque()  # or about to be, by step

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def sizes(self) -> dict[str, int]:
        """How much of each of the folder's event files is written, by name, with all that is buffered."""
        self._images(wait=True)
        self._writer.flush()
        return {file.name: file.stat().st_size for file in _event_files(self._folder)}

    def close(self) -> None:
        """Write out what is buffered and still being drawn; nothing can be written after that."""
        try:
            self._images(wait=True)
        finally:
            self._writer.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One point for each tag."""
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._event_file.add_summary(summary, step)

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
            self._drawn.append((snapshot.step, self._drawer.draw(snapshot)))
            self._images(wait=False)

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """A text as it is, shown in a fixed-width font."""
        indented = "\n".join(f"    {line}" for line in text.splitlines())  # markdown's code block
        self._writer.add_text(tag, indented, step)

    def hparams(self, settings: Mapping[str, object], metrics: Mapping[str, float]) -> None:
        """Settings for the HPARAMS table; its metrics are the last points of the scalars named.

        Written into this run's own event file: SummaryWriter.add_hparams would make a second run.
        """
        plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in settings.items()}
        for summary in hparams(plain, dict(metrics)):
            self._event_file.add_summary(summary)

    @property
    def _event_file(self):  # type: ignore[no-untyped-def]  # torch's FileWriter, untyped
        return self._writer._get_file_writer()

    def _images(self, *, wait: bool) -> None:
        """Write the figures that are drawn, in the order of their steps; wait: also those that are not yet."""
        while self._drawn and (wait or self._drawn[0][1].done()):
            step, drawn = self._drawn.popleft()
            for tag, png in drawn.result().items():
                image = Summary.Image(encoded_image_string=png, colorspace=3)
                self._event_file.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)


def _event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("events.out.tfevents.*"))
