"""The runs of docs/article.md: the sweeps that produce them, and the table of their outcomes.

    python benchmarks/article_runs.py sweep NAME... [OVERRIDE...]    train; NAME: cpu (two hours), cuda or a study
    python benchmarks/article_runs.py pack FOLDER...                 store the runs of the sweeps in these folders

A sweep's folder is named after its study. Overrides come last and take precedence, so the sweeps also run without a
network: `sweep cuda model.tokenizer=FOLDER data.data_home=FOLDER`. Effective rates are, without bias correction, the
nominal rate times (1 - beta1^t) / sqrt(1 - beta2^t) at update t.
"""

import csv
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from verdicts import verdicts

from bertmon.monitor.history import HISTORY_FILE, FloatArray, History
from bertmon.result import RESULT_FILE, RunResult, Status

STORE = Path(__file__).parent / "results" / "article.csv"


@dataclass(frozen=True)
class Study:
    """A sweep: its title in a figure or its row in a table, and its overrides."""

    title: str
    overrides: str


CPU = "device=cpu hydra/launcher=joblib monitor.figures=false"
CUDA = (  # evaluated at the end of each epoch only
    "device=cuda monitor.figures=false train.eval_every=1000000 experiment=article "
    "schedule.warmup_frac=0,0.05,0.1,0.3,0.5,0.7,0.9"
)
NEWS = "experiment=article model=bert_small data.max_length=64"
BOTH = "optimizer.bias_correction=false,true"
TEN = "seed=0,1,2,3,4,5,6,7,8,9"
PHASES = {
    "phase_docstrings": Study(
        "docstrings, 32 tokens",
        f"{CPU} experiment=quickstart model=bert_small seed=0,1,2 schedule.warmup_frac=0,0.1,0.3,0.5,0.7 "
        f"optimizer.lr=2e-4,4e-4,7e-4,1.2e-3,2e-3 {BOTH}",
    ),
    "phase_newsgroups": Study(
        "20 newsgroups, 64 tokens",
        f"{CPU} {NEWS} seed=0,1,2 schedule.warmup_frac=0,0.1,0.7 optimizer.lr=2e-4,4e-4,7e-4,1.2e-3 {BOTH} "
        "monitor.on_doomed=stop",
    ),
    "warmup_bert_base": Study("20 newsgroups, BERT-base", f"{CUDA} {TEN} {BOTH}"),
    "warmup_bert_base_bf16": Study("20 newsgroups, BERT-base in bf16", f"{CUDA} {TEN} {BOTH} train.precision=bf16"),
    "cliff_bert_base": Study(
        "20 newsgroups, BERT-base, five rates",
        f"{CUDA} seed=0,1,2,3,4 optimizer.lr=1e-5,3e-5,1e-4,3e-4,1e-3 {BOTH} monitor.on_doomed=stop",
    ),
}
ONE = f"{CPU} experiment=quickstart seed=0,1,2,3,4 monitor.on_doomed=stop"
CHANGES = {  # one change each to the quickstart run that does not learn; titles are formatted with an ArticleRun
    "change_warmup": Study("`schedule.warmup_frac={warmup_frac:g}`", f"{ONE} schedule.warmup_frac=0.1,0.3,0.7"),
    "change_bias_correction": Study("`optimizer.bias_correction=true`", f"{ONE} optimizer.bias_correction=true"),
    "change_beta2": Study("`optimizer.beta2=0.99`", f"{ONE} optimizer.beta2=0.99"),
    "change_lr": Study("`optimizer.lr={lr:g}`", f"{ONE} optimizer.lr=2.5e-4"),
    "change_lr_smaller": Study("`optimizer.lr={lr:g}`", f"{ONE} optimizer.lr=1.8e-4"),
    "change_lr_0.7": Study(
        "`schedule.warmup_frac={warmup_frac:g} optimizer.lr={lr:g}`",
        f"{ONE} schedule.warmup_frac=0.7 optimizer.lr=1.2e-3",
    ),
    "change_no_decay": Study(
        "`schedule={decay} schedule.warmup_frac={warmup_frac:g}`",
        f"{ONE} schedule=constant schedule.warmup_frac=0.1,0.7",
    ),
    "change_clip": Study("`train.max_grad_norm={max_grad_norm}`", f"{ONE} train.max_grad_norm=null,0.1"),
    "change_pre_ln": Study("`model.model_type={model_type}`", f"{ONE} model.model_type=roberta-prelayernorm"),
    "change_dropout": Study(
        "dropout of 0.1, `schedule.warmup_frac={warmup_frac:g}`",
        f"{ONE} schedule.warmup_frac=0.1,0.7 model.hidden_dropout_prob=0.1 model.attention_probs_dropout_prob=0.1",
    ),
    "change_steps": Study("`train.epochs={epochs}`", f"{ONE} train.epochs=9"),
    "change_steps_same_warmup": Study(
        "`train.epochs={epochs} schedule.warmup_frac={warmup_frac:g}`",
        f"{ONE} train.epochs=9 schedule.warmup_frac=0.0333",
    ),
}
TO_THE_END = {  # runs that were stopped in their sweeps: some had learned something, some failed at a low peak
    "flag_to_the_end": Study(
        "docstrings, `train.epochs=9`, seed 4", f"{CPU} experiment=quickstart seed=4 train.epochs=9"
    ),
    "flag_news_to_the_end": Study(
        "20 newsgroups, warm-up 0.1, 7e-4, bias correction, seed 2",
        f"{CPU} {NEWS} seed=2 schedule.warmup_frac=0.1 optimizer.lr=7e-4 optimizer.bias_correction=true",
    ),
    "flag_beta2_to_the_end": Study(
        "docstrings, `optimizer.beta2=0.99`, seed {seed}", f"{CPU} experiment=quickstart seed=1,4 optimizer.beta2=0.99"
    ),
}
STUDIES = PHASES | CHANGES | TO_THE_END


def sweep(requested: Sequence[str], overrides: Sequence[str]) -> None:
    """Run these studies, or all studies of a device; a study whose folder exists is resumed."""
    _require_known(requested, "cpu", "cuda")
    devices = tuple(f"device={name} " for name in requested)
    names = [name for name, study in STUDIES.items() if name in requested or study.overrides.startswith(devices)]
    for name in names:
        folder = Path("multirun", name)
        target = f"resume={folder}" if folder.exists() else f"hydra.sweep.dir={folder}"
        arguments = ["-m", "bertmon.run", "-m", *STUDIES[name].overrides.split(), *overrides, target]
        print("python", *arguments, flush=True)
        subprocess.run([sys.executable, *arguments], check=True)


def _require_known(names: Sequence[str], *others: str) -> None:
    if unknown := set(names) - STUDIES.keys() - set(others):
        sys.exit(f"no study {', '.join(sorted(unknown))}; there are {', '.join([*others, *STUDIES])}")


@dataclass(frozen=True)
class ArticleRun:
    """One run, a row of the table. The mean effective rate is over all steps, the late one over the second half."""

    study: str
    seed: int
    warmup_frac: float
    lr: float
    bias_correction: bool
    decay: str
    max_grad_norm: str
    model_type: str
    epochs: int
    total_steps: int
    steps: int
    status: str
    accuracy: float
    did_not_learn: bool
    verdict: str
    flagged_step: int  # the step of the first doomed verdict, by the rules at the time; -1: never
    peak_effective_lr: float
    mean_effective_lr: float
    late_effective_lr: float


def rates(effective_lr: FloatArray) -> dict[str, float]:
    """The three effective rates of an ArticleRun."""
    late = effective_lr[len(effective_lr) // 2 :]
    values = (effective_lr.max(), effective_lr.mean(), late.mean())
    return {f"{name}_effective_lr": float(value) for name, value in zip(("peak", "mean", "late"), values, strict=True)}


# --- the store -----------------------------------------------------------------------------------


def first_flag(result: RunResult, history: History) -> int:
    """ArticleRun.flagged_step; for a run that was stopped, the step of the verdict that stopped it."""
    if result.status is Status.stopped:
        assert result.flagged_step is not None
        return result.flagged_step
    return next((step for step, diagnosis in verdicts(history, 30) if diagnosis.verdict.doomed), -1)


def read(sweep_dirs: Sequence[Path]) -> Iterator[ArticleRun]:
    """The runs that have ended; others are listed on stderr. Exits if a folder contains no run."""
    for sweep_dir in sweep_dirs:
        run_dirs = sorted(path.parent for path in sweep_dir.rglob(RESULT_FILE))
        if not run_dirs:
            sys.exit(f"{sweep_dir} contains no runs.")
        for run_dir in run_dirs:
            result = RunResult.read_ended(run_dir)
            if result is None:
                print(f"{run_dir}: has not ended, left out", file=sys.stderr)
                continue
            yield _row(sweep_dir.name, result, History.load(run_dir / HISTORY_FILE))


def _row(study: str, result: RunResult, history: History) -> ArticleRun:
    config = result.config
    assert config is not None
    assert result.final is not None
    assert result.diagnosis is not None
    clip, total_steps = config["train"]["max_grad_norm"], result.total_steps
    assert total_steps is not None
    return ArticleRun(
        study=study,
        seed=result.seed or 0,
        warmup_frac=config["schedule"]["warmup_frac"],
        lr=config["optimizer"]["lr"],
        bias_correction=config["optimizer"]["bias_correction"],
        decay=config["schedule"]["decay"],
        max_grad_norm="null" if clip is None else f"{clip:g}",
        model_type=config["model"]["model_type"] or "bert",
        epochs=config["train"]["epochs"],
        total_steps=total_steps,
        steps=result.steps,
        status=result.status,
        accuracy=round(result.final.accuracy, 6),
        did_not_learn=bool(result.did_not_learn),
        verdict=result.diagnosis.verdict,
        flagged_step=first_flag(result, history),
        **{name: float(f"{value:.5g}") for name, value in rates(history.plan.effective_lr).items()},
    )


def pack(sweep_dirs: Sequence[Path]) -> None:
    """Store the runs of these sweeps; rows of other studies are retained."""
    _require_known([folder.name for folder in sweep_dirs])
    packed = {folder.name for folder in sweep_dirs}
    others = [row for row in unpack() if row.study not in packed] if STORE.exists() else []
    rows = sorted([*others, *read(sweep_dirs)], key=lambda row: (row.study, *map(str, asdict(row).values())))
    with STORE.open("w", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in fields(ArticleRun)], lineterminator="\n")
        table.writeheader()
        table.writerows(map(asdict, rows))


def unpack() -> list[ArticleRun]:
    """The stored runs."""
    parsers: dict[str, Callable[[str], Any]] = {"bool": lambda text: text == "True"}
    parsers |= {"int": int, "float": float, "str": str}
    types = {field.name: parsers[field.type.__name__] for field in fields(ArticleRun)}  # type: ignore[union-attr]
    with STORE.open(newline="") as file:
        return [ArticleRun(**{name: types[name](text) for name, text in row.items()}) for row in csv.DictReader(file)]


def main(arguments: Sequence[str]) -> None:
    """See the module's docstring."""
    match list(arguments):
        case ["pack", *folders] if folders:
            pack([Path(folder) for folder in folders])
        case ["sweep", *words] if names := [word for word in words if "=" not in word]:
            sweep(names, [word for word in words if "=" in word])
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
