"""Colors and theme of every figure, in TensorBoard and in the report.

Imports no plotting library when loaded: the process that draws during training starts twice as fast without seaborn,
whose "colorblind" palette is copied here as constants (a test compares them).
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

BLUE, ORANGE, GREEN, VERMILION, PINK, BROWN, ROSE, GRAY, YELLOW, SKY = PALETTE = (
    "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9"
)  # fmt: skip
"""seaborn's "colorblind" palette: distinguishable for color-blind readers too, on white and on black."""

SETTING_COLORS = (VERMILION, BLUE, GREEN, PINK, ORANGE, SKY, BROWN, GRAY)
"""The first two are for the typical comparison of two settings."""
KIND_COLORS = {"linear": BLUE, "embedding": GREEN, "norm": PINK, "bias": ORANGE, "other": SKY}
"""By the kind of weight."""
MATRIX_COLORS = (BLUE, SKY, GREEN, VERMILION, PINK, BROWN, ORANGE, GRAY)
"""By the kind of matrix in an encoder layer, in the order of the model."""
VERDICT_COLORS: Mapping[str, str] = {
    "healthy": BLUE,
    "undecided": GRAY,
    "slow": ORANGE,
    "not learning": PINK,
    "collapsed": VERMILION,
    "diverged": BROWN,
}
"""By verdict."""
NO_VERDICT_COLOR = SKY
"""For a run that was not monitored."""

TEXT, MUTED, ERROR, GRID, BAND, WHITE = "#1d2126", "#6b7280", VERMILION, "#d9dce1", "#eef0f3", "#ffffff"

MATRIX_NAMES = {
    "attention.query": "query",
    "attention.key": "key",
    "attention.value": "value",
    "attention.output.dense": "attention output",
    "intermediate.dense": "FFN in",
    "output.dense": "FFN out",
}
"""Names of an encoder layer's matrices in legends; others keep their own names."""


def matrix_name(group: str) -> str:
    """The name in legends of a group of WeightTable.matrix_groups, such as "enc.l.*.attention.query"."""
    name = group.rpartition("*.")[2]
    return MATRIX_NAMES.get(name, name)


def matrix_style(index: int, name: str) -> dict[str, Any]:
    """Line style of the index-th kind of matrix. Query and key are dashed: their gradients scale differently."""
    return {
        "color": MATRIX_COLORS[index % len(MATRIX_COLORS)],
        "linestyle": (0, (3, 2)) if name in ("query", "key") else "-",
        "marker": "o" if index < len(MATRIX_COLORS) else "s",
    }


def verdict_color(verdict: str | None) -> str:
    """The color of a verdict. None: the run was not monitored."""
    return NO_VERDICT_COLOR if verdict is None else VERDICT_COLORS.get(verdict, GRAY)


def power_of_ten(exponent: float) -> str:
    """A tick label in the notation that the whole program uses: 1e-3."""
    return f"1e{round(exponent)}"


def theme() -> AbstractContextManager[None]:
    """seaborn's theme, as a context for the creation of a figure."""
    import matplotlib
    import seaborn

    style: Any = seaborn.axes_style("whitegrid") | seaborn.plotting_context("notebook", font_scale=0.8)
    style |= {
        "axes.edgecolor": GRID,
        "axes.facecolor": "none",
        "axes.labelcolor": TEXT,
        "axes.linewidth": 0.8,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "font.family": ["sans-serif"],
        "font.sans-serif": ["DejaVu Sans"],
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "text.color": TEXT,
        "xtick.color": TEXT,
        "ytick.color": TEXT,
    }
    return matplotlib.rc_context(style)
