"""Monitor a transformers Trainer; a few seconds on a CPU. Needs `pip install accelerate`.

python examples/transformers_trainer.py runs/learns --lr 5e-4
python examples/transformers_trainer.py runs/collapses --lr 1e-2
python -m tensorboard.main --logdir runs --samples_per_plugin images=100
"""

import argparse
import logging
from pathlib import Path

from toy_data import lines, small_bert
from transformers import Trainer, TrainingArguments

from bertmon.integrations.transformers_trainer import WatchCallback


def train(folder: Path, lr: float, steps: int) -> WatchCallback:
    examples = lines()
    callback = WatchCallback(folder, labels=[example["labels"] for example in examples], on_doomed="stop")
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        learning_rate=lr,
        max_steps=steps,
        warmup_steps=steps // 10,
        per_device_train_batch_size=16,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
    )
    Trainer(model=small_bert(), args=arguments, train_dataset=examples, callbacks=[callback]).train()
    return callback


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    print(train(options.folder, options.lr, options.steps).watch.diagnosis)
