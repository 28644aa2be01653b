"""Monitor a LightningModule; a few seconds on a CPU. Needs `pip install lightning`.

python examples/lightning_trainer.py runs/learns --lr 5e-4
python examples/lightning_trainer.py runs/collapses --lr 1e-2
python -m tensorboard.main --logdir runs --samples_per_plugin images=100
"""

import argparse
import logging
from pathlib import Path

import lightning.pytorch as pl
import torch
from toy_data import lines, small_bert
from transformers import get_linear_schedule_with_warmup

from bertmon.integrations.lightning import WatchCallback


class LineClassifier(pl.LightningModule):
    def __init__(self, lr: float, steps: int):
        super().__init__()
        self.model, self.lr, self.steps = small_bert(), lr, steps

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        scheduler = get_linear_schedule_with_warmup(optimizer, self.steps // 10, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def train(folder: Path, lr: float, steps: int) -> WatchCallback:
    examples = lines()
    callback = WatchCallback(folder, labels=[example["labels"] for example in examples], on_doomed="stop")
    loader = torch.utils.data.DataLoader(examples, batch_size=16, shuffle=True, drop_last=True)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        callbacks=[callback],
    )
    trainer.fit(LineClassifier(lr, steps), loader)
    return callback


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    print(train(arguments.folder, arguments.lr, arguments.steps).watch.diagnosis)
