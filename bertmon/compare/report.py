"""The report: one page that needs nothing else, and the same in Markdown. Writes report.html and report.md."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from bertmon.compare import selection, summary
from bertmon.compare.results import WAITING, Sweep, read_sweep
from bertmon.result import SWEEP_FILE, Status, run_names
from bertmon.sanitize import sanitize_line
from bertmon.storage import atomic_write

log = logging.getLogger(__name__)

HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"

_HEAT_MAPS = (
    ("grad_mean", "mean |gradient|"),
    ("grad_max", "largest |gradient|"),
    ("grad_std", "std of |gradient|"),
    ("grad_zero", "zero gradients [%]"),
    ("update_ratio", "update / parameter"),
    ("weight_rms", "root mean square of the weight"),
)


def write_report(folders: Sequence[Path], target: Path) -> Sweep:
    """Read the sweeps in `folders`, put their report into `target`, and return what was read. Raises InputError."""
    from bertmon.compare import plots  # matplotlib and seaborn, which a training process must not import

    sweep = read_sweep(folders)
    with plots.suppress_plot_warnings():
        whole = render_html(sweep)
    atomic_write(target / HTML_FILE, whole.encode(errors="replace"))
    atomic_write(target / MARKDOWN_FILE, render_markdown(sweep).encode(errors="replace"))
    return sweep


def refresh_report(folder: Path) -> None:
    """Rebuild the report when a run ends while others wait, in a separate process, at most 5 % of the wall time.

    Errors are logged; no run fails with them.
    """
    try:
        seconds = 3 + len(run_names(folder)) / 150  # that it takes, about
        last = max(path.stat().st_mtime for path in (folder / HTML_FILE, folder / SWEEP_FILE) if path.exists())
        if not 0 <= time.time() - last < 20 * seconds and _unfinished(folder):  # the launch writes the last one
            command = [sys.executable, "-m", "bertmon.compare", str(folder)]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if done.returncode:
                log.error("%s could not be written: %s", folder / HTML_FILE, done.stderr.strip())
    except Exception as error:
        log.error("%s could not be written: %s", folder / HTML_FILE, error)


def _unfinished(folder: Path) -> bool:
    return any(run.status in (WAITING, Status.running) for run in read_sweep([folder]).runs)


def render_html(sweep: Sweep) -> str:
    from bertmon.compare import plots

    colors = plots.setting_colors(sweep)
    curves = selection.select_curves(sweep)
    beside = selection.select_layer_runs(sweep)
    environment = Environment(loader=PackageLoader("bertmon.compare", ""), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("report.html.jinja").render(
        sweep=sweep,
        title=_title(sweep),
        swept=[sanitize_line(key) for key in sweep.swept],
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
        sentences=summary.conclusions(sweep),
        settings=summary.settings_table(sweep),
        caption=summary.TABLE_NOTE,
        colors=[colors[setting] for setting in sweep.settings],
        runs=summary.runs_table(sweep),
        errors=summary.unfinished_table(sweep),
        overview=plots.to_svg(plots.training_curves(curves, colors)) if curves else "",
        drawn=len(curves),
        layers=[
            (step, [plots.to_svg(figure) for figure in plots.layer_figures(beside, step, colors).values()])
            for step in selection.select_steps(beside)
        ],
        heat_maps=[plots.to_svg(plots.layer_heatmap(beside, name, title)) for name, title in _HEAT_MAPS]
        if beside
        else [],
    )


def _title(sweep: Sweep) -> str:
    return sanitize_line(", ".join(folder.resolve().name for folder in sweep.folders))


def render_markdown(sweep: Sweep) -> str:
    parts = [f"# {_title(sweep)}", *summary.conclusions(sweep)]
    parts += [summary.settings_table(sweep).markdown(), summary.TABLE_NOTE]
    errors = summary.unfinished_table(sweep)
    if errors.rows:
        parts += ["## Runs that did not end", errors.markdown()]
    parts += [
        "## Runs",
        summary.runs_table(sweep).markdown(),
        f"Written by bertmon at {time.strftime('%Y-%m-%d %H:%M:%S')}.",
    ]
    return "\n\n".join(parts) + "\n"
