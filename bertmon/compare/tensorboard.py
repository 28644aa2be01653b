"""The command that shows a sweep in TensorBoard."""

import sys
from pathlib import Path


def tensorboard_argv(folder: Path) -> list[str]:
    """A command that runs as it is printed, whether or not `tensorboard` is on the PATH.

    TensorBoard keeps ten images of a tag unless told otherwise.
    """
    return [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--samples_per_plugin", "images=100"]
