"""A sweep in sentences: conclusions, the summary on the console, a line of progress."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence

from bertmon.compare.advice import advise
from bertmon.compare.rates import rate_windows
from bertmon.compare.results import NOT_STARTED, RunSummary, Setting, Sweep, short_names
from bertmon.compare.tables import (
    Table,
    count_verdicts,
    flagged_steps,
    format_accuracy,
    listed_settings,
    settings_table,
    unfinished_reason,
)
from bertmon.notation import format_duration, format_percent, format_rate
from bertmon.result import Status
from bertmon.sanitize import sanitize_line, wrap_for

_MAX_NAMED = 3  # settings that are named one by one
_MAX_CONSOLE_ROWS = 40
_VERDICT_STYLES = {
    "healthy": "green",
    "undecided": "bright_black",
    "slow": "yellow",
    "not learning": "red",
    "collapsed": "red",
    "diverged": "red",
}


def conclusions(sweep: Sweep) -> list[str]:
    """The results of the sweep in plain sentences."""
    unfinished = _unfinished(sweep)
    if not sweep.ended:
        return [unfinished or "No run has ended yet."]
    sentences = [_best(sweep)]
    if sweep.min_test_texts:
        sentences.append(_uninformative_test(sweep, *sweep.min_test_texts))
    else:
        sentences += _failures(sweep)
    sentences += _windows(sweep)
    sentences += _changed_data(sweep)
    if unfinished:
        sentences.append(unfinished)
    return [sanitize_line(sentence, 2000) for sentence in sentences]


def verdict_sentence(run: RunSummary) -> str:
    """The verdict of one run, with its reasons."""
    diagnosis = run.result.diagnosis if run.result else None
    if diagnosis is None:
        return "The run was not monitored."
    return f"Verdict: {diagnosis.verdict} since step {diagnosis.since_step}" + (
        f": {text}." if (text := diagnosis.findings_text()) else "."
    )


def console_summary(sweep: Sweep) -> str:
    """The summary for standard output: as wide as the terminal, verdicts in color unless NO_COLOR is set."""
    from rich.console import Console  # imported here, since other uses of this module do not need it
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    table = settings_table(sweep, intervals=False).without_empty_columns()
    note, listed = "", listed_settings(sweep)
    if len(table.rows) > _MAX_CONSOLE_ROWS:
        best = sorted(range(len(table.rows)), key=lambda row: -listed[row].sort_key())[:_MAX_CONSOLE_ROWS]
        note = f"(the best {_MAX_CONSOLE_ROWS} of {len(table.rows)} settings)"
        table = Table(table.header, tuple(table.rows[row] for row in best))
    if console.is_terminal:
        importance = ("test accuracy", "verdict", "did not learn", "flagged at step", "runs", "peak rate")
        table = table.fitted(console.width, (*importance, "saved", "time", "test loss", "macro F1", "best"))
    sentences = [wrap_for(console.file, sentence) for sentence in conclusions(sweep)]
    lines = [line for line in ("\n".join([table.plain(), note]), *sentences) if line]
    text = Text("\n".join(line.rstrip("\n") for line in lines))
    for verdict, style in _VERDICT_STYLES.items():
        text.highlight_words([verdict], style)
    with console.capture() as capture:
        console.print(text)
    return capture.get().rstrip("\n")


def progress_line(sweep: Sweep) -> str:
    """The progress of a sweep in one line, when its next run starts; empty for a single run."""
    waiting = [run for run in sweep.runs if run.status == NOT_STARTED]
    running = [run for run in sweep.runs if run.status == Status.running]
    if len(sweep.runs) < 2 or not waiting:
        return ""
    counts = Counter(str(run.verdict or "not monitored") for run in sweep.ended).most_common()
    line = f"run {len(sweep.runs) - len(waiting) + 1} of {len(sweep.runs)}"
    if times := [run.seconds for run in sweep.ended if not math.isnan(run.seconds)]:
        left = statistics.fmean(times) * len(waiting) / (len(running) + 1)
        line += f", about {format_duration(left)} left; {len(sweep.ended)} ended: "
        line += ", ".join(f"{count} {verdict}" for verdict, count in counts)
    unfinished = sum(run.unfinished for run in sweep.runs)
    return line + (f", {unfinished} unfinished" if unfinished else "")


def _best(sweep: Sweep) -> str:
    ended = [setting for setting in sweep.settings if setting.ended]
    best = max(ended, key=Setting.sort_key)
    if len(sweep.ended) > 1 and not sweep.min_test_texts and all(run.did_not_learn for run in sweep.ended):
        return "No run did better than always predicting the most frequent class."
    if best.saves_best:
        result = f"{format_percent(*best.mean('accuracy', best=True)[:2])} test accuracy at the best evaluation"
    else:
        result = f"{format_accuracy(best)} test accuracy"
    result += _seeds(best)
    criterion = f" by {best.criterion}" if best.criterion else ""
    return f"Best{criterion}: {best.name}, {result}." if len(ended) > 1 else f"{best.name}: {result}."


def _uninformative_test(sweep: Sweep, texts: int, needed: int) -> str:
    """Why the test texts cannot show whether runs learned."""
    if all(run.result and run.result.data and run.result.data.majority_share == 1 for run in sweep.ended):
        return "All test texts have the same label: their accuracy cannot tell learning from guessing."
    return f"{texts} test texts are too few to tell learning from guessing: at least {needed} are needed."


def _failures(sweep: Sweep) -> list[str]:
    """Which settings did not learn and why, and where verdicts were wrong."""
    failing = [setting for setting in sweep.settings if setting.runs_not_learned]
    sentences = []
    if len(failing) <= _MAX_NAMED:
        sentences += [
            f"{_failure(setting)} {advise(sweep, setting, brief=len(failing) > 1)}".strip() for setting in failing
        ]
    else:
        all_failed = sum(len(setting.runs_not_learned) == len(setting.ended) for setting in failing)
        verdicts = count_verdicts([run for setting in failing for run in setting.runs_not_learned])
        none_learned = f", and in {all_failed} of them no run learned" if all_failed else ""
        result = "no run learned" if all_failed == len(failing) else f"some runs did not learn{none_learned}"
        ended = sum(bool(setting.ended) for setting in sweep.settings)
        sentences.append(f"In {len(failing)} of {ended} settings {result}; verdicts on those that did not: {verdicts}.")
        sentences += _cliff(sweep)
    learned = [run for run in sweep.ended if not run.did_not_learn]
    diverged = [run.name for run in learned if run.status == Status.diverged]
    if not failing and not diverged and len(sweep.ended) == len(sweep.runs) > 1:
        sentences.append("All runs learned.")
    if diverged:
        sentences.append(f"Diverged after they had learned: {_join(diverged)}.")
    wrong = [run.name for run in learned if run.flagged_step is not None and run.status != Status.diverged]
    if wrong:
        sentences.append(f"False alarms (flagged as doomed but learned): {_join(wrong)}.")
    return sentences


def _cliff(sweep: Sweep) -> list[str]:
    """The peak effective rate that separates the settings, if there is one."""
    known = [setting for setting in sweep.settings if setting.ended and not math.isnan(setting.peak_effective_lr)]
    learned = max((setting.peak_effective_lr for setting in known if not setting.runs_not_learned), default=math.inf)
    failed = min((setting.peak_effective_lr for setting in known if setting.runs_not_learned), default=0.0)
    if not learned < failed:
        return []
    return [
        f"The peak effective rate separates them: up to {format_rate(learned)}, all runs learned; from "
        f"{format_rate(failed)}, some or all did not."
    ]


def _failure(setting: Setting) -> str:
    """How many of the setting's runs did not learn, since which step they were flagged, and the likely cause."""
    failed = setting.runs_not_learned
    if len(setting.runs) == 1:
        outcome = "did not learn"
    elif len(setting.ended) == 1:
        outcome = "the one run that has ended did not learn"
    else:
        outcome = f"{len(failed)} of {len(setting.ended)} runs did not learn"
    text = f"{setting.name}: {outcome}"
    flagged = [run for run in failed if run.flagged_step is not None]
    predicted = {run.constant_prediction for run in failed}
    if not flagged and len(predicted) == 1 and (label := predicted.pop()):
        return f"{text}: the training loss is below chance, but {sanitize_line(label)} is predicted for every text."
    if not flagged:
        watched = any(run.verdict for run in failed)
        return text + (", and no rule flagged it by the end." if watched else "; it was not monitored.")
    some = "" if len(flagged) == len(failed) else f"{len(flagged)} of them "
    planned = max(run.result.total_steps or 0 for run in flagged if run.result)
    share = statistics.median(run.flagged_fraction for run in flagged)
    steps = f"step {flagged_steps(flagged)} of {planned}, {100 * share:.0f} %"
    text += f" ({some}{count_verdicts(flagged)}, flagged at {steps})"
    causes = Counter(run.result.diagnosis.cause for run in flagged if run.result and run.result.diagnosis)
    cause = causes.most_common(1)[0][0]
    return text + (f"; likely cause: {cause}." if cause else ".")


def _windows(sweep: Sweep) -> list[str]:
    """The number of rates at which all runs learned, by the other keys."""
    windows = rate_windows(sweep)
    if len(windows) < 2 or len(windows) > 2 * _MAX_NAMED:
        return []
    short = short_names(windows[0].values)
    named = [
        f"{', '.join(f'{short[key]}={sweep.label(key, value)}' for key, value in window.values.items())}: "
        f"{len(window.all_learned)} of {len(window.rates)}"
        for window in windows
    ]
    return [f"Learning rates at which all runs learned: {'; '.join(named)}."]


def _changed_data(sweep: Sweep) -> list[str]:
    """Runs whose data settings are equal but whose data is not: a file changed while the sweep ran."""
    versions: dict[str, dict[str, str]] = {}  # data settings -> fingerprint -> name of the first run
    for run in sweep.ended:
        if run.result and run.result.data and run.values:
            settings = repr(sorted((key, value) for key, value in run.values.items() if key.startswith("data.")))
            versions.setdefault(settings, {}).setdefault(run.result.data.fingerprint, run.name)
    return [
        f"The data changed between runs: {_join(list(names.values()))} had different texts, so do not compare them."
        for names in versions.values()
        if len(names) > 1
    ]


def _unfinished(sweep: Sweep) -> str:
    counts = Counter(run.status for run in sweep.runs if not run.ended)
    states = ", ".join(f"{n} {status}" for status, n in counts.items())
    if not states:
        return ""
    if len(sweep.runs) == 1:
        (run,) = sweep.runs
        reason = unfinished_reason(run)
        return f"{run.name}: {run.status}" + (f" ({reason})." if reason else ".")
    return f"Excluded: {states}." if sweep.ended else f"No run has ended yet: {states}."


def _seeds(setting: Setting) -> str:
    n, seeds = len(setting.ended), len({run.seed for run in setting.ended})
    return "" if n < 2 else f" ({n} seeds)" if n == seeds else f" ({n} runs of {seeds} seeds)"


def _join(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_NAMED]) + (f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else "")
