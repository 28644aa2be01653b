"""The sweep's own event file: the layers of its runs beside each other, as images in TensorBoard."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary

from bertmon.compare import plots, selection
from bertmon.compare.results import Setting, Sweep
from bertmon.compare.selection import RunWithHistory
from bertmon.monitor.eventfile import EventFile

COMPARISON_DIR = "side by side"
"""Shown as a run of its own."""


def write_comparison(sweep: Sweep, target: Path) -> None:
    """Put them into target / FOLDER, in place of older ones. Nothing is written where nothing was measured."""
    beside, colours = selection.select_layer_runs(sweep), plots.setting_colors(sweep)
    folder = target / COMPARISON_DIR
    older = list(folder.glob("events.out.tfevents.*"))
    if len(beside) > 1:
        with plots.suppress_plot_warnings():
            _write(folder, beside, colours)
    for file in older:
        file.unlink()


def _write(folder: Path, beside: Sequence[RunWithHistory], colours: Mapping[Setting, str]) -> None:
    file = EventFile(folder)
    for step in sorted(selection.select_steps(beside)):
        for tag, figure in plots.layer_figures(beside, step, colours).items():
            png = plots.to_png(figure)
            width, height = Image.open(io.BytesIO(png)).size
            image = Summary.Image(encoded_image_string=png, colorspace=3, width=width, height=height)
            summary = Summary(value=[Summary.Value(tag=f"side_by_side/{tag}", image=image)])
            file.write(summary, step)
    file.close()
