"""The report: one page that needs nothing else, and the same in Markdown. Writes report.html and report.md."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from bertmon.compare import plots, selection, summary
from bertmon.compare.results import Sweep, read_sweep
from bertmon.result import read_sweep_file
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
    sweep = read_sweep(folders)
    with plots.suppress_plot_warnings():
        whole = render_html(sweep)
    atomic_write(target / HTML_FILE, whole.encode(errors="replace"))
    atomic_write(target / MARKDOWN_FILE, render_markdown(sweep).encode(errors="replace"))
    return sweep


def refresh_report(folder: Path) -> None:
    """As `write`, for a run that ends while others wait: not if that would take more than a twentieth of the time.

    What goes wrong with it is told in the log and harms no run.
    """
    try:
        page, takes = folder / HTML_FILE, 2 + len(read_sweep_file(folder).get("runs", [])) / 150  # seconds, about
        if page.exists() and 0 <= time.time() - page.stat().st_mtime < 20 * takes:
            return
        if any(
            run.status in ("waiting", "running") for run in read_sweep([folder]).runs
        ):  # the launch writes the last one
            write_report([folder], folder)
    except OSError as error:
        log.error(f"{folder / HTML_FILE} could not be written: {error}")
    except Exception:
        log.exception(f"{folder / HTML_FILE} could not be written")


def render_html(sweep: Sweep) -> str:
    colours = plots.setting_colors(sweep)
    curves = selection.select_curves(sweep)
    beside = selection.select_layer_runs(sweep)
    environment = Environment(loader=PackageLoader("bertmon.compare", ""), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("report.html.jinja").render(
        sweep=sweep,
        title=_title(sweep),
        swept=[sanitize_line(key) for key in sweep.swept],
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
        sentences=summary.conclusions(sweep),
        cells=summary.settings_table(sweep),
        caption=summary.TABLE_NOTE,
        colours=[colours[cell] for cell in sweep.settings],
        runs=summary.runs_table(sweep),
        errors=summary.unfinished_table(sweep),
        overview=plots.to_svg(plots.training_curves(curves, colours)) if curves else "",
        drawn=len(curves),
        layers=[
            (step, [plots.to_svg(figure) for figure in plots.layer_figures(beside, step, colours).values()])
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
