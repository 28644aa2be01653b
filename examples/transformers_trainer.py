"""bertmon in transformers' Trainer, in a minute on a CPU (needs `pip install accelerate`):

python examples/trainer.py runs/learns --lr 5e-4
python examples/trainer.py runs/collapses --lr 1e-2
tensorboard --logdir runs --samples_per_plugin images=100
"""

import argparse
import logging

from modules import LENGTH, MODULES, lines
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

from bertmon.integrations.transformers_trainer import WatchCallback

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--lr", type=float, default=5e-4)
parser.add_argument("--steps", type=int, default=400)
arguments = parser.parse_args()
logging.basicConfig(format="%(message)s", level=logging.INFO)

set_seed(0)
texts = lines()
callback = WatchCallback(
    arguments.folder,
    labels=[text["labels"] for text in texts],
    on_doomed="stop",
)
trainer = Trainer(
    model=BertForSequenceClassification(
        BertConfig(
            vocab_size=257,
            hidden_size=128,
            num_hidden_layers=6,
            num_attention_heads=2,
            intermediate_size=512,
            max_position_embeddings=LENGTH,
            num_labels=len(MODULES),
        )
    ),
    args=TrainingArguments(
        output_dir=f"{arguments.folder}/trainer",
        learning_rate=arguments.lr,
        max_steps=arguments.steps,
        warmup_steps=arguments.steps // 10,
        per_device_train_batch_size=16,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
    ),
    train_dataset=texts,
    callbacks=[callback],
)
trainer.train()
print(callback.watch.diagnosis)
