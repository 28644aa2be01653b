"""The sweep's own event file: the layers of its runs beside each other, as images in TensorBoard."""

import io
import time
from pathlib import Path

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from bertmon.compare import Sweep, charts, shown

FOLDER = "side by side"
"""Shown as a run of its own."""


def write(sweep: Sweep, target: Path) -> None:
    """Put them into target / FOLDER, in place of older ones. Nothing is written where nothing was measured."""
    beside, colours = shown.beside(shown.curves(sweep)), charts.colours(sweep)
    if len(beside) < 2:
        return
    folder = target / FOLDER
    older = list(folder.glob("events.out.tfevents.*"))
    writer = EventFileWriter(str(folder))
    for step in sorted(shown.steps(beside)):
        for tag, figure in charts.layers(beside, step, colours).items():
            png = charts.png(figure)
            width, height = Image.open(io.BytesIO(png)).size
            image = Summary.Image(encoded_image_string=png, colorspace=3, width=width, height=height)
            summary = Summary(value=[Summary.Value(tag=f"side_by_side/{tag}", image=image)])
            writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
    writer.close()
    for file in older:
        file.unlink()
