"""bertmon in a training loop of your own, in a minute on a CPU:

python examples/own_loop.py runs/learns --lr 5e-4
python examples/own_loop.py runs/collapses --lr 1e-2
tensorboard --logdir runs --samples_per_plugin images=100
"""

import argparse
import itertools
import logging

import torch
from modules import LENGTH, MODULES, lines
from transformers import BertConfig, BertForSequenceClassification, get_linear_schedule_with_warmup

from bertmon.integrations.own_loop import Watch

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--lr", type=float, default=5e-4)
parser.add_argument("--steps", type=int, default=400)
arguments = parser.parse_args()
logging.basicConfig(format="%(message)s", level=logging.INFO)

torch.manual_seed(0)
texts = lines()
model = BertForSequenceClassification(
    BertConfig(
        vocab_size=257,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=LENGTH,
        num_labels=len(MODULES),
    )
)
optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr)
scheduler = get_linear_schedule_with_warmup(optimizer, arguments.steps // 10, arguments.steps)
loader = torch.utils.data.DataLoader(texts, batch_size=16, shuffle=True, drop_last=True)
epochs = itertools.chain.from_iterable(itertools.repeat(loader))

model.train()
with Watch(
    model,
    optimizer,
    arguments.folder,
    total_steps=arguments.steps,
    labels=[text["labels"] for text in texts],
    scheduler=scheduler,
) as watch:
    for batch in itertools.islice(epochs, arguments.steps):
        loss = model(**batch).loss
        loss.backward()
        with watch.step(loss, batch):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if watch.doomed:
            break
print(watch.diagnosis)
