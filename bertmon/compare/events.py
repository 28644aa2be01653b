"""The sweep's own event file: the layers of its runs beside each other, as images in TensorBoard."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary

from bertmon.compare import Cell, Sweep, charts, shown
from bertmon.compare.shown import Curves
from bertmon.monitor.eventfile import EventFile

FOLDER = "side by side"
"""Shown as a run of its own."""


def write(sweep: Sweep, target: Path) -> None:
    """Put them into target / FOLDER, in place of older ones. Nothing is written where nothing was measured."""
    beside, colours = shown.beside(sweep), charts.colours(sweep)
    folder = target / FOLDER
    older = list(folder.glob("events.out.tfevents.*"))
    if len(beside) > 1:
        with charts.quietly():
            _write(folder, beside, colours)
    for file in older:
        file.unlink()


def _write(folder: Path, beside: Sequence[Curves], colours: Mapping[Cell, str]) -> None:
    file = EventFile(folder)
    for step in sorted(shown.steps(beside)):
        for tag, figure in charts.layers(beside, step, colours).items():
            png = charts.png(figure)
            width, height = Image.open(io.BytesIO(png)).size
            image = Summary.Image(encoded_image_string=png, colorspace=3, width=width, height=height)
            summary = Summary(value=[Summary.Value(tag=f"side_by_side/{tag}", image=image)])
            file.write(summary, step)
    file.close()
