"""The report: one page that needs nothing else, and the same in Markdown. Writes report.html and report.md."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from bertmon.cache import write_atomic
from bertmon.compare import Sweep, charts, read, shown, words
from bertmon.record import plan
from bertmon.terminal import line

log = logging.getLogger(__name__)

HTML, MARKDOWN = "report.html", "report.md"

_HEAT_MAPS = (
    ("grad_mean", "mean |gradient|"),
    ("grad_max", "largest |gradient|"),
    ("grad_std", "std of |gradient|"),
    ("grad_zero", "zero gradients [%]"),
    ("update_ratio", "update / parameter"),
    ("weight_rms", "root mean square of the weight"),
)


def write(folders: Sequence[Path], target: Path) -> Sweep:
    """Read the sweeps in `folders`, put their report into `target`, and return what was read. Raises InputError."""
    sweep = read(folders)
    with charts.quietly():
        whole = html(sweep)
    write_atomic(target / HTML, whole.encode(errors="replace"))
    write_atomic(target / MARKDOWN, markdown(sweep).encode(errors="replace"))
    return sweep


def refresh(folder: Path) -> None:
    """As `write`, for a run that ends while others wait: not if that would take more than a twentieth of the time.

    What goes wrong with it is told in the log and harms no run.
    """
    try:
        page, takes = folder / HTML, 2 + len(plan(folder).get("runs", [])) / 150  # seconds, about
        if page.exists() and 0 <= time.time() - page.stat().st_mtime < 20 * takes:
            return
        if any(run.status in ("waiting", "running") for run in read([folder]).runs):  # the launch writes the last one
            write([folder], folder)
    except OSError as error:
        log.error(f"{folder / HTML} could not be written: {error}")
    except Exception:
        log.exception(f"{folder / HTML} could not be written")


def html(sweep: Sweep) -> str:
    colours = charts.colours(sweep)
    curves = shown.curves(sweep)
    beside = shown.beside(sweep)
    environment = Environment(loader=PackageLoader("bertmon.compare", ""), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("report.html.jinja").render(
        sweep=sweep,
        title=_title(sweep),
        swept=[line(key) for key in sweep.swept],
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
        sentences=words.sentences(sweep),
        cells=words.cells(sweep),
        caption=words.CAPTION,
        colours=[colours[cell] for cell in sweep.cells],
        runs=words.runs(sweep),
        errors=words.errors(sweep),
        overview=charts.svg(charts.overview(curves, colours)) if curves else "",
        drawn=len(curves),
        layers=[
            (step, [charts.svg(figure) for figure in charts.layers(beside, step, colours).values()])
            for step in shown.steps(beside)
        ],
        heat_maps=[charts.svg(charts.heat_map(beside, name, title)) for name, title in _HEAT_MAPS] if beside else [],
    )


def _title(sweep: Sweep) -> str:
    return line(", ".join(folder.resolve().name for folder in sweep.folders))


def markdown(sweep: Sweep) -> str:
    parts = [f"# {_title(sweep)}", *words.sentences(sweep)]
    parts += [words.cells(sweep).markdown(), words.CAPTION]
    errors = words.errors(sweep)
    if errors.rows:
        parts += ["## Runs that did not end", errors.markdown()]
    parts += ["## Runs", words.runs(sweep).markdown(), f"Written by bertmon at {time.strftime('%Y-%m-%d %H:%M:%S')}."]
    return "\n\n".join(parts) + "\n"
