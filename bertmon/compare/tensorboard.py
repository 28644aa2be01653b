"""The command that shows a sweep in TensorBoard."""

import sys
from pathlib import Path


def tensorboard_argv(folder: Path) -> list[str]:
    """A command that works as printed, whether or not `tensorboard` is on the PATH.

    By default, TensorBoard keeps only ten images of a tag.
    """
    return [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--samples_per_plugin", "images=100"]
