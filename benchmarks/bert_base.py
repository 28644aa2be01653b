"""BERT-base from random weights on the article's task: the outcome of each run, and its signals during training.

    python benchmarks/bert_base.py                   the tables, from the stored runs
    python benchmarks/bert_base.py picture FILE      gradients by depth, logits and losses
    python benchmarks/bert_base.py pack FOLDER...    add the runs in these folders to the stored ones

A run takes an hour on one CPU thread (64 tokens, 5 s a step; twice that with 128 tokens). It writes checkpoints, and
`bertmon resume` resumes it:

    python -m bertmon.run -m experiment=article data.max_length=64 seed=0,1,2 schedule.warmup_frac=0.1,0.7 \\
        monitor.every=10 monitor.figures=false train.eval_every=128 train.checkpoint_minutes=15 device=cpu
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from environment import compose_config
from labeled_runs import BASE_FROM, BASE_STORE, Label, LabeledRun, pack, read_run, smooth_loss, unpack
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from verdicts import bertmon_rules, vanishing_gradient, verdicts

from bertmon.config import run_identity
from bertmon.monitor.diagnosis import Verdict
from bertmon.monitor.history import HISTORY_FILE, Snapshot
from bertmon.notation import format_rate, format_value
from bertmon.plot_style import MUTED, SETTING_COLORS, theme
from bertmon.result import RunResult

SHOWN_STEPS = (0, 60, 120, 180, 240, 300, 400, 500, 600)
EVALUATED_STEPS = (128, 256, 384, 512, 640)
KEYS = {  # settings that differ within this study, in table order, and their place in result.json
    "data.max_length": ("data", "max_length"),
    "schedule.warmup_frac": ("schedule", "warmup_frac"),
    "optimizer.bias_correction": ("optimizer", "bias_correction"),
    "optimizer.lr": ("optimizer", "lr"),
}


_COMPARED = ("data.", "model.", "optimizer.", "schedule.", "train.")
_WHERE = ("data.data_home", "model.tokenizer", "train.eval_every")  # do not affect training steps


def read_runs(folders: Sequence[Path]) -> Iterator[LabeledRun]:
    """The ended runs in the folders, to be numbered by `add`. Raises ValueError for other settings and duplicates."""
    seen: dict[tuple[str, int | None], Path] = {}
    for path in sorted(path for folder in folders for path in folder.rglob(HISTORY_FILE)):
        result = RunResult.read_ended(path.parent)
        if result is None or not result.config:
            continue
        if result.experiment != "article":
            raise ValueError(f"{path.parent}: expected a run of experiment=article, got {result.experiment}.")
        _require_article(result.config, path.parent)
        values = {key: result.config[group][name] for key, (group, name) in KEYS.items()}
        run = read_run(path.parent, BASE_FROM, setting_text(values).split())
        assert run is not None
        if (run.overrides, run.seed) in seen:
            raise ValueError(f"{path.parent}: the same setting and seed as {seen[run.overrides, run.seed]}.")
        seen[run.overrides, run.seed] = path.parent
        yield run


def _require_article(config: Mapping[str, Any], folder: Path) -> None:
    """Raise ValueError if the run differs from experiment=article beyond KEYS, the only settings in the tables."""
    expected = run_identity(asdict(compose_config(["experiment=article"])))
    for key, value in run_identity(config).items():
        if key.startswith(_COMPARED) and key not in (*KEYS, *_WHERE) and value != expected.get(key):
            raise ValueError(f"{folder}: expected {key}={expected.get(key)}, as in experiment=article, got {value}.")


def setting_text(values: Mapping[str, Any]) -> str:
    """The overrides of a run with these values of KEYS."""
    return " ".join(["experiment=article", *(f"{key}={format_value(value)}" for key, value in values.items())])


def add(stored: Sequence[LabeledRun], new: Sequence[LabeledRun]) -> list[LabeledRun]:
    """All runs, numbered by peak effective rate; a new run replaces a stored one with the same setting and seed."""
    runs = {(run.overrides, run.seed): run for run in (*stored, *new)}
    peaks = {run.overrides: float(run.history.plan.effective_lr.max()) for run in runs.values()}
    settings = sorted(peaks, key=lambda overrides: (peaks[overrides], overrides))
    numbered = (replace(run, setting=BASE_FROM + settings.index(run.overrides)) for run in runs.values())
    return sorted(numbered, key=lambda run: (run.setting, run.seed))


def name(run: LabeledRun) -> str:
    """The cells of the run in a table's first columns."""
    values = _values(run.overrides)
    corrected = "yes" if values["optimizer.bias_correction"] == "true" else "no"
    keys = (values["data.max_length"], values["schedule.warmup_frac"], values["optimizer.lr"], corrected)
    return " | ".join([*keys, format_rate(run.history.plan.effective_lr.max(), 2), str(run.seed)])


HEADER = "| tokens | warm-up | rate | bias correction | peak | seed |"
RULE = "|---|---|---|---|---|---|"


def print_ends(runs: Sequence[LabeledRun]) -> None:
    """Accuracies during training, and the verdicts with a snapshot every 10 steps."""
    steps = ", ".join(map(str, EVALUATED_STEPS))
    print(f"{HEADER} test accuracy at steps {steps} [%] | verdicts, from step |\n{RULE}---|---|")
    for run in runs:
        accuracies = dict(run.evaluations)
        shown = [f"{100 * accuracies[step]:.1f}" if step in accuracies else "-" for step in EVALUATED_STEPS]
        if not run.complete:
            shown = [f"stopped at {len(run.history.losses)}: {100 * run.accuracy:.1f}"]
        changes = {diagnosis.since_step: diagnosis.verdict for _, diagnosis in verdicts(run.history, 10)}
        events = ", ".join(f"{verdict} {step}" for step, verdict in changes.items() if verdict is not Verdict.undecided)
        print(f"| {name(run)} | {', '.join(shown)} | {events} |")


def print_signals(runs: Sequence[LabeledRun]) -> None:
    """The spread of the logits and the ratio of the first layer's gradients to the last one's, during training."""
    signals: dict[str, Callable[[Snapshot], float]] = {
        "logit_std": lambda shot: shot.logit_std,
        "depth_ratio": lambda shot: shot.depth_ratio[0],
    }
    for tag, signal in signals.items():
        print(f"\n{HEADER} `{tag}` at steps {', '.join(map(str, SHOWN_STEPS))} |\n{RULE}---|")
        for run in runs:
            values = {shot.step: signal(shot) for shot in run.history.snapshots}
            print(f"| {name(run)} | {', '.join(_format(values.get(step, math.nan)) for step in SHOWN_STEPS)} |")


def _format(value: float) -> str:
    return "-" if math.isnan(value) else format_rate(value, 2)


def print_stop(runs: Sequence[LabeledRun], step: int = 180) -> None:
    """The runs that would have been stopped for vanishing gradients, as the article advises."""
    ended = [run for run in runs if run.complete]
    vanishing = [
        run for run in ended if any(shot.step == step and shot.depth_ratio[0] < 0.03 for shot in run.history.snapshots)
    ]
    learned = sum(run.label is Label.learned for run in vanishing)
    print(f"\nOf {len(ended)} runs to the end, gradients vanish (`depth_ratio` below 0.03) at step {step} in", end=" ")
    print(f"{len(vanishing)}; {learned} of these learned.")
    print("\nFirst flag of SageMaker's VanishingGradient, and of bertmon, every 10 steps:")
    for run in runs:
        if (flag := vanishing_gradient(run, 10)) is not None:
            print(f"{name(run)}: {flag}, {bertmon_rules(run, 10)}")


# --- the picture ---------------------------------------------------------------------------------


def picture(runs: Sequence[LabeledRun], path: Path, step: int = 180) -> None:
    """Gradients by depth at the article's step, then the spread of the logits and the loss over the steps.

    Shows only the runs with the fewest tokens, which have several seeds.
    """
    tokens = min(_tokens(run) for run in runs)
    runs = [run for run in runs if _tokens(run) == tokens]
    settings = list(dict.fromkeys(run.overrides for run in reversed(runs) if run.complete))  # the largest peak first
    with theme():
        figure = Figure(figsize=(11, 3.6), dpi=100)
        by_depth, spread, loss = figure.subplots(1, 3)
        for run in runs:
            if run.complete:
                style: dict[str, Any] = {"color": SETTING_COLORS[settings.index(run.overrides)], "linewidth": 1.2}
                _draw_depths(by_depth, run, step, style)
                shots = run.history.snapshots
                spread.plot([shot.step for shot in shots], [shot.logit_std for shot in shots], **style)
                smoothed, window = smooth_loss(run.history)
                loss.plot(np.arange(len(smoothed)) + window, smoothed, **style)
        by_depth.set(
            yscale="log", xlabel="encoder layer (0 is next to the input)", title=f"mean |gradient|, step {step}"
        )
        spread.set(yscale="log", xlabel="step", title="standard deviation of the logits")
        loss.axhline(runs[0].history.plan.chance_loss, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="chance")
        loss.set(xlabel="step", title="training loss, mean of 32 steps")
        loss.legend(frameon=False, loc="lower left")
        lines = [Line2D([], [], color=SETTING_COLORS[row], label=_legend(text)) for row, text in enumerate(settings)]
        figure.legend(handles=lines, loc="upper center", ncols=len(lines), frameon=False)
        figure.tight_layout(rect=(0, 0, 1, 0.93), w_pad=1.5)
        figure.savefig(path)


def _tokens(run: LabeledRun) -> int:
    return int(_values(run.overrides)["data.max_length"])


def _values(overrides: str) -> dict[str, str]:
    return dict(override.split("=") for override in overrides.split())


def _draw_depths(axes: Axes, run: LabeledRun, step: int, style: Mapping[str, Any]) -> None:
    """The geometric mean over each encoder layer's matrices, except query and key, whose gradients are smaller."""
    shot = next(shot for shot in run.history.snapshots if shot.step == step)
    means: dict[int, list[float]] = {}
    for label, kind, depth, mean in zip(
        shot.layers.labels, shot.layers.kinds, shot.layers.depths, shot["grad_mean"], strict=True
    ):
        if kind == "linear" and depth is not None and not label.endswith(("query", "key")):
            means.setdefault(depth, []).append(mean)
    axes.plot(
        list(means), [math.exp(np.log(each).mean()) for each in means.values()], marker="o", markersize=3, **style
    )


def _legend(overrides: str) -> str:
    values = _values(overrides)
    corrected = ", bias correction" if values["optimizer.bias_correction"] == "true" else ""
    rate = "" if float(values["optimizer.lr"]) == 3e-5 else f", rate {format_rate(float(values['optimizer.lr']))}"
    return f"warm-up {values['schedule.warmup_frac']}{rate}{corrected}"


def main(arguments: list[str]) -> None:
    """See the module's docstring."""
    match arguments:
        case ["pack", *folders] if folders:
            stored = unpack(BASE_STORE) if BASE_STORE.exists() else []
            pack(add(stored, list(read_runs(list(map(Path, folders))))), BASE_STORE)
        case ["picture", path]:
            picture(unpack(BASE_STORE), Path(path))
        case []:
            runs = unpack(BASE_STORE)
            print_ends(runs)
            print_signals(runs)
            print_stop(runs)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
