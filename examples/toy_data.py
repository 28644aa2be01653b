"""A small task for the examples, with nothing to download: which module of Python's library is this line from?"""

import argparse
import doctest
import inspect
import random
import tarfile
import typing

import torch

MODULES = (argparse, doctest, tarfile, typing)
LENGTH = 48  # tokens, a line's bytes


def lines(per_module: int = 900) -> list[dict[str, torch.Tensor]]:
    """Lines in random order, each with input_ids [T], attention_mask [T] and labels []."""
    found = []
    for label, module in enumerate(MODULES):
        distinct = sorted({line.strip() for line in inspect.getsource(module).splitlines() if len(line.strip()) > 20})
        for line in random.Random(0).sample(distinct, per_module):
            tokens = torch.tensor(list(line.encode()[:LENGTH]))
            ids = torch.zeros(LENGTH, dtype=torch.int64)
            ids[: len(tokens)] = tokens + 1  # 0 is padding
            found.append({"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.tensor(label)})
    random.Random(0).shuffle(found)
    return found
