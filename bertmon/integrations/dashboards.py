"""Output to the W&B and MLflow runs that the training program has already started; neither package is required."""

import io
import logging
import sys
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def register_with_wandb(folder: Path) -> None:
    """Make a W&B run that has sync_tensorboard=True follow the event files of a folder.

    W&B discovers folders by patching the writers of TensorBoard and torch, neither of which writes these event files.
    """
    wandb: Any = sys.modules.get("wandb")
    run = getattr(wandb, "run", None)
    if run is None or not getattr(wandb, "patched", {}).get("tensorboard"):
        return
    try:
        run._tensorboard_callback(str(folder.absolute()), save=True)
    except Exception as error:  # not a public method
        log.warning(f"could not register {folder} with W&B ({error}): sync_tensorboard will not include it.")


def log_figure(step: int, tag: str, png: bytes) -> None:
    """Log a figure to the active W&B and MLflow runs, as an image at the Trainer's step."""
    from PIL import Image

    wandb: Any = sys.modules.get("wandb")
    if getattr(wandb, "run", None) is not None:
        image = wandb.Image(Image.open(io.BytesIO(png)))
        wandb.run.log({f"bertmon/{tag}": image, "train/global_step": step})
    mlflow: Any = sys.modules.get("mlflow")
    if mlflow is not None and mlflow.active_run() is not None:
        mlflow.log_image(Image.open(io.BytesIO(png)), artifact_file=f"bertmon/{tag}/step_{step:06d}.png")


def log_verdict(verdict: str, text: str) -> None:
    """Write the verdict and its diagnosis to the W&B run's summary and the MLflow run's tags."""
    wandb: Any = sys.modules.get("wandb")
    if getattr(wandb, "run", None) is not None:
        wandb.run.summary.update({"bertmon/verdict": verdict, "bertmon/diagnosis": text})
    mlflow: Any = sys.modules.get("mlflow")
    if mlflow is not None and mlflow.active_run() is not None:
        mlflow.set_tags({"bertmon.verdict": verdict, "bertmon.diagnosis": text})
