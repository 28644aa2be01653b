"""A small task and model for the examples, with nothing to download: which module is this line of code from?"""

import argparse
import inspect
import random
import tarfile
import typing

import torch
from transformers import BertConfig, BertForSequenceClassification

MODULES = (argparse, tarfile, typing)
LENGTH = 32  # tokens per line, one per byte


def lines(per_module: int = 500) -> list[dict[str, torch.Tensor]]:
    """Lines in random order, each with input_ids [T], attention_mask [T] and labels []."""
    examples = []
    for label, module in enumerate(MODULES):
        distinct = sorted({line.strip() for line in inspect.getsource(module).splitlines() if len(line.strip()) > 20})
        for line in random.Random(0).sample(distinct, per_module):
            tokens = torch.tensor(list(line.encode()[:LENGTH]))
            ids = torch.zeros(LENGTH, dtype=torch.int64)
            ids[: len(tokens)] = tokens + 1  # 0 is padding
            examples.append({"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.tensor(label)})
    random.Random(0).shuffle(examples)
    return examples


def small_bert() -> BertForSequenceClassification:
    """A BERT with six layers of width 64 and random weights."""
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=257,
            hidden_size=64,
            num_hidden_layers=6,
            num_attention_heads=2,
            intermediate_size=256,
            max_position_embeddings=LENGTH,
            num_labels=len(MODULES),
        )
    )
