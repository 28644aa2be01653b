"""The report of a sweep: report.html, a self-contained page; the same in Markdown; runs.csv for pandas."""

import base64
import csv
import hashlib
import io
import logging
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from bertmon.compare import selection, summary, tables
from bertmon.compare.details import details, resume_commands, title
from bertmon.compare.results import NOT_STARTED, RunSummary, Sweep, read_sweep
from bertmon.compare.selection import RunWithHistory
from bertmon.compare.tables import Table
from bertmon.plot_style import VERDICT_COLORS
from bertmon.result import SWEEP_FILE, Status, run_names
from bertmon.storage import atomic_write

log = logging.getLogger(__name__)

HTML_FILE, MARKDOWN_FILE, CSV_FILE = "report.html", "report.md", "runs.csv"

_HEAT_MAPS = (
    ("grad_mean", "mean |gradient|"),
    ("update_ratio", "update / parameter"),
    ("grad_max", "largest |gradient|"),
    ("grad_std", "std of |gradient|"),
    ("grad_zero", "zero gradients [%]"),
    ("weight_rms", "root mean square of the weight"),
)


def write_report(folders: Sequence[Path], target: Path) -> Sweep:
    """Read the sweeps in `folders`, write their report to `target`, and return what was read. Raises InputError."""
    sweep = read_sweep(folders)
    page = render_html(sweep, target)
    atomic_write(target / CSV_FILE, runs_csv(sweep).encode(errors="replace"))
    atomic_write(target / MARKDOWN_FILE, render_markdown(sweep).encode(errors="replace"))
    atomic_write(target / HTML_FILE, page.encode(errors="replace"))
    return sweep


def refresh_report(folder: Path) -> None:
    """Rebuild the report when a run ends while others wait, in a separate process, for at most 5 % of the wall time.

    Errors are logged and do not fail the run.
    """
    try:
        seconds = 3 + len(run_names(folder)) / 150  # approximate duration
        last = max(path.stat().st_mtime for path in (folder / HTML_FILE, folder / SWEEP_FILE) if path.exists())
        if not 0 <= time.time() - last < 20 * seconds and _has_pending_runs(folder):  # the launch writes the final one
            command = [sys.executable, "-m", "bertmon.compare", str(folder)]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            process = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if process.returncode:
                log.error("%s could not be written: %s", folder / HTML_FILE, process.stderr.strip())
    except Exception as error:
        log.error("%s could not be written: %s", folder / HTML_FILE, error)


def render_html(sweep: Sweep, target: Path) -> str:
    """The page; links to run folders are relative to `target`."""
    environment = Environment(loader=PackageLoader("bertmon.compare", ""), autoescape=True, undefined=StrictUndefined)
    environment.filters["verdicts"] = _colored_verdicts
    template = environment.get_template("report.html.jinja")
    loader, script = environment.loader, "report.js"
    assert loader is not None
    source = loader.get_source(environment, script)[0]
    return template.render(
        sweep=sweep,
        title=title(sweep),
        details=details(sweep),
        written=time.strftime("%Y-%m-%d %H:%M"),
        conclusions=summary.conclusions(sweep),
        verdict=summary.verdict_sentence(sweep.runs[0]) if len(sweep.runs) == 1 else "",
        settings=tables.settings_table(sweep).without_empty_columns(),
        note=tables.TABLE_NOTE if sweep.ended else "",
        rates=tables.rates_table(sweep),
        unfinished=tables.unfinished_table(sweep),
        resume_commands=resume_commands(sweep),
        runs=tables.runs_table(sweep).without_empty_columns(),
        links=[_links(run, target) for run in sweep.runs],
        script=Markup(source),
        script_hash=base64.b64encode(hashlib.sha256(source.encode()).digest()).decode(),
        **_figures(sweep),
    )


def render_markdown(sweep: Sweep) -> str:
    parts = [f"# {title(sweep)}", *summary.conclusions(sweep)]
    parts += [tables.settings_table(sweep).without_empty_columns().markdown()]
    parts += [tables.TABLE_NOTE] if sweep.ended else []
    rates = tables.rates_table(sweep)
    if rates.rows:
        parts += ["## Window of learning rates", rates.markdown()]
    unfinished = tables.unfinished_table(sweep)
    if unfinished.rows:
        parts += ["## Unfinished runs", unfinished.markdown()]
    parts += [f"To resume: `{command}`" for command in resume_commands(sweep)]
    parts += ["## Runs", tables.runs_table(sweep).without_empty_columns().markdown()]
    parts += ["## Details", Table(("", ""), tuple(details(sweep))).markdown()]
    parts.append(f"Written by bertmon at {time.strftime('%Y-%m-%d %H:%M')}.")
    return "\n\n".join(parts) + "\n"


def runs_csv(sweep: Sweep) -> str:
    """A row per run: its setting, metrics, verdict, peak effective rate, steps and seconds. Empty means unknown."""
    file = io.StringIO()
    columns = ["run", "folder", *sweep.swept, "seed", "status", "accuracy", "loss", "f1_macro", "mcc"]
    columns += ["best_accuracy", "did_not_learn"]
    columns += ["verdict", "verdict_step", "peak_effective_lr", "steps", "total_steps", "seconds"]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for setting in sweep.settings:
        for run in setting.runs:
            writer.writerow(
                [run.name, run.run_dir, *(setting.values.get(key) for key in sweep.swept), *_csv_values(run)]
            )  # fmt: skip
    return file.getvalue()


def _csv_values(run: RunSummary) -> list[Any]:
    result = run.result
    numbers = [run.final(metric) for metric in ("accuracy", "loss", "f1_macro", "mcc")] + [run.best("accuracy")]
    diagnosis = result.diagnosis if result else None
    values: list[Any] = [run.seed, run.status, *numbers, run.did_not_learn, run.verdict]
    values += [diagnosis.since_step if diagnosis else None, run.peak_effective_lr]
    values += [result.steps if result else None, result.total_steps if result else None, run.seconds]
    return [None if isinstance(value, float) and math.isnan(value) else value for value in values]


def _figures(sweep: Sweep) -> dict[str, Any]:
    """SVG of all figures, by their names in the template."""
    # matplotlib and seaborn, which a training process must not import
    from bertmon.compare import answer_plots, curve_plots, layer_plots, plots

    colors = plots.setting_colors(sweep)
    curves = selection.select_curves(sweep)
    side_by_side = selection.select_layer_runs(sweep)
    steps = selection.select_steps(side_by_side)
    with plots.suppress_plot_warnings():
        points = [answer_plots.accuracy_over_key(sweep), answer_plots.accuracy_over_rate(sweep)]
        depths = [(step, layer_plots.gradient_depth(side_by_side, step)) for step in steps]
        heat_maps = _HEAT_MAPS if side_by_side else ()
        return {
            "colors": [colors[setting] for setting in tables.listed_settings(sweep)],
            "points": [_svg(*each) for each in points if each],
            "answers": [_svg(figure) for figure in answer_plots.heat_maps(sweep)],
            "curves": _svg(*curve_plots.training_curves(curves, colors)) if curves else "",
            "curves_note": _curves_note(sweep, curves, bands=plots.has_own_colors(sweep)),
            "depths": [(step, _svg(figure)) for step, figure in depths if figure],
            "bars": [(step, [_svg(f) for f in layer_plots.layer_bars(side_by_side, step, colors)]) for step in steps],
            "heat_maps": [_svg(layer_plots.layer_heatmap(side_by_side, *each)) for each in heat_maps],
        }


def _curves_note(sweep: Sweep, curves: Sequence[RunWithHistory], *, bands: bool) -> str:
    """The caption of the curves."""
    band, flag = (
        ("; band: smallest to largest", " Dotted: the step from which a run is flagged.") if bands else ("", "")
    )
    settings = len({curve.setting.name for curve in curves})
    line = f"mean over the drawn runs of a setting, geometric on logarithmic axes{band}"
    if len(curves) == settings:
        line = "the first run of each setting" if len(sweep.runs) > len(sweep.settings) else "one run per setting"
    return (
        f"{len(curves)} of {len(sweep.runs)} runs. Line: {line}. Dashed: chance, a model that ignores the text.{flag}"
    )


def _svg(figure: Any, titles: Any = None) -> Markup:
    from bertmon.compare import plots

    return Markup(plots.to_svg(figure, titles))


def _links(run: RunSummary, target: Path) -> dict[str, str]:
    """Relative URLs of the run's folder and log, if they exist."""
    if not run.run_dir.is_dir():
        return {}
    folder = quote(os.fsencode(os.path.relpath(run.run_dir.resolve(), target.resolve())))
    return {"folder": f"./{folder}/", "log": f"./{folder}/run.log" if (run.run_dir / "run.log").is_file() else ""}


def _colored_verdicts(text: str) -> Markup:
    """The text with each verdict in its color."""
    verdicts = "|".join(sorted(VERDICT_COLORS, key=len, reverse=True))
    parts = re.split(rf"\b({verdicts})\b", text)
    colored = (
        Markup('<span class="verdict {}">{}</span>').format(part.replace(" ", "-"), part) if index % 2 else escape(part)
        for index, part in enumerate(parts)
    )
    return Markup("").join(colored)


def _has_pending_runs(folder: Path) -> bool:
    return any(run.status in (NOT_STARTED, Status.running) for run in read_sweep([folder]).runs)
