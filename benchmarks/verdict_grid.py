"""The labeled runs that bertmon's verdicts are evaluated on: small BERTs, real training, real histories.

    python benchmarks/verdict_grid.py FOLDER [settings] [processes]
    python benchmarks/verdict_grid.py FOLDER advice [processes]

Trains settings 0 to 136 with seeds 0 and 1, and later ones, which are for scoring only, with seed 2, into FOLDER, with
one thread per process; finished runs are skipped, so the same command resumes after an interruption. Settings are drawn
at random, seeded by their number: the first 237 of 300 are the same as the default 237. Settings on real 20 newsgroups
are skipped unless scikit-learn has the data (SCIKIT_LEARN_DATA). With `advice`, every run of seed 0 that did not learn
is trained again as its verdict advised, into FOLDER/advice.
"""

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from environment import compose_config
from labeled_runs import CALIBRATION_SETTINGS, Label, read_folder
from verdicts import verdicts

from bertmon.monitor.history import HISTORY_FILE
from bertmon.result import RunResult
from bertmon.training.run_training import run_training

SETTINGS = 237

# The comparisons in README and docs/LOG.md come first.
QUICKSTART = ["experiment=quickstart"]
NEWSGROUPS = ["data=newsgroups", "model=bert_small", "data.max_length=64", "train.epochs=6"]
NAMED = [
    [*QUICKSTART, "schedule.warmup_frac=0.1"],
    [*QUICKSTART, "schedule.warmup_frac=0.7"],
    [*QUICKSTART, "schedule.warmup_frac=0.1", "optimizer.bias_correction=true"],
    [*NEWSGROUPS, "optimizer.lr=7e-4", "schedule.warmup_frac=0.1"],
    [*NEWSGROUPS, "optimizer.lr=7e-4", "schedule.warmup_frac=0.7"],
    [*NEWSGROUPS, "optimizer.lr=1e-3", "schedule.warmup_frac=0.1"],
    [*NEWSGROUPS, "optimizer.lr=1e-4", "schedule.warmup_frac=0.7", "model.num_hidden_layers=12"],
]


def setting(number: int) -> list[str]:
    """The overrides of setting `number`, on top of experiment=quickstart."""
    if number < len(NAMED):
        return NAMED[number]
    draw = np.random.default_rng((2026, number))

    def one(*choices: object, p: list[float] | None = None) -> object:
        return choices[draw.choice(len(choices), p=p)]

    newsgroups = draw.random() < 0.35
    width = one(64, 128, p=[0.75, 0.25])
    batch_size = one(8, 16, 32, p=[0.3, 0.5, 0.2])
    steps = one(300, 500, 700, 1000, p=[0.25, 0.35, 0.3, 0.1])
    texts = 2034 if newsgroups else 3600
    dropout = one(0.0, 0.1, p=[0.7, 0.3])
    return [
        f"data={'newsgroups' if newsgroups else 'docstrings'}",
        f"data.max_length={one(32, 64) if newsgroups else 32}",
        f"model.num_hidden_layers={one(2, 4, 6, 8, 12)}",
        f"model.hidden_size={width}",
        f"model.intermediate_size={4 * width}",
        f"model.hidden_dropout_prob={dropout}",
        f"model.attention_probs_dropout_prob={dropout}",
        f"optimizer.lr={one(1e-5, 5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 7e-4, 1e-3, 1.5e-3, 2e-3, 4e-3, 1e-2):g}",
        f"optimizer.bias_correction={one('false', 'true', p=[0.65, 0.35])}",
        f"schedule.warmup_frac={one(0.0, 0.1, 0.3, 0.5, 0.7, 0.9)}",
        f"train.batch_size={batch_size}",
        f"train.epochs={max(1, round(steps * batch_size / texts))}",
    ]


def train(
    run_dir: Path,
    setting: list[str],
    seed: int,
    always: Sequence[str] = ("monitor.every=10", "train.eval_every=10000"),
    finish: Callable[[Path], None] = lambda work: None,
) -> str:
    """Train one run into the folder, unless it exists; returns a line of status.

    always: further overrides that are not part of the setting. finish: adds files to the folder of a run that ended.
    """
    if RunResult.read_ended(run_dir) and (run_dir / HISTORY_FILE).exists():
        return f"{run_dir}: finished before"
    work = run_dir.with_name(f"{run_dir.name}.unfinished")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    overrides = [*setting, f"seed={seed}", "device=cpu", "monitor.figures=false", *always]
    started = time.perf_counter()
    result = run_training(compose_config(["experiment=quickstart", *overrides]), work, name=str(run_dir))
    for events in work.glob("events*"):
        events.unlink()
    (work / "overrides.txt").write_text("\n".join(setting) + "\n")
    finish(work)
    work.rename(run_dir)
    return f"{run_dir}: {result.objective:.1%} after {time.perf_counter() - started:.0f} s, {' '.join(setting)}"


def has_data(number: int) -> bool:
    """Whether the texts of a setting are available on this machine."""
    home = Path(os.environ.get("SCIKIT_LEARN_DATA", "~/scikit_learn_data")).expanduser()
    return "data=newsgroups" not in setting(number) or (home / "20news-bydate_py3.pkz").exists()


def grid(folder: Path, count: int) -> Iterator[tuple[Path, list[str], int]]:
    """The folder, overrides and seed of every run."""
    for seed in (0, 1, 2):
        for number in range(count):
            if (number < CALIBRATION_SETTINGS) == (seed < 2) and has_data(number):
                yield folder / f"{number:03d}" / f"seed={seed}", setting(number), seed


def advised(folder: Path) -> Iterator[tuple[Path, list[str], int]]:
    """Reruns of the runs of seed 0 that did not learn, one per override that their first doomed verdict advised."""
    for run in read_folder(folder):
        if run.label is not Label.did_not_learn or run.seed:
            continue
        flags = (diagnosis for _, diagnosis in verdicts(run.history, every=30) if diagnosis.verdict.doomed)
        flag = next(flags, None)
        for advice in (flag.advice or "").split(" or ") if flag else ():
            if "=" in advice:
                key = advice.split("=")[0]
                others = [override for override in setting(run.setting) if not override.startswith(f"{key}=")]
                yield folder / "advice" / f"{run.setting:03d},{flag.verdict},{advice}", [*others, advice], 0


def prepare_process() -> None:
    """Use one thread, and log errors only."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)


def main(folder: Path, what: str, processes: int) -> None:
    """See the module's docstring."""
    tasks = list(advised(folder) if what == "advice" else grid(folder, int(what)))
    with ProcessPoolExecutor(processes, get_context("spawn"), prepare_process) as pool:
        for finished in as_completed([pool.submit(train, *task) for task in tasks]):
            print(finished.result(), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), (sys.argv[2:] or [str(SETTINGS)])[0], int((sys.argv[3:] or [2])[0]))
