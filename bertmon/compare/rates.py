"""The window of learning rates at which a model learns, and its learning-rate sensitivity.

The sensitivity (Wortsman et al. 2023, arXiv 2309.14322) is the mean loss over a range of rates minus the loss of the
best one, with losses capped at chance. 0: every rate is as good as the best.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bertmon.compare.results import Setting, Sweep
from bertmon.notation import format_rate

LR_KEY = "optimizer.lr"


@dataclass(frozen=True, slots=True)
class RateWindow:
    """The settings of a sweep that differ only in their learning rate."""

    values: Mapping[str, Any]  # of the other keys that were swept
    rates: tuple[float, ...]  # ascending
    all_learned: tuple[float, ...]  # the rates at which every run learned
    sensitivity: float  # in units of the loss; nan if no loss is known

    def text(self) -> str:
        """The rates at which all runs learned, as a range if they are adjacent."""
        learned, first = self.all_learned, self.rates.index(self.all_learned[0]) if self.all_learned else 0
        if len(learned) > 2 and self.rates[first : first + len(learned)] == learned:
            return f"{format_rate(learned[0])} to {format_rate(learned[-1])}"
        return ", ".join(map(format_rate, learned)) or "none"


def rate_windows(sweep: Sweep) -> list[RateWindow]:
    """A window for each combination of the other keys that was trained at two or more rates."""
    if LR_KEY not in sweep.swept or not sweep.values_are_unique:
        return []
    groups: dict[tuple[str, ...], list[Setting]] = {}
    for setting in sweep.settings:
        if setting.ended and isinstance(setting.values.get(LR_KEY), int | float):
            others = tuple(str(value) for key, value in setting.values.items() if key != LR_KEY)
            groups.setdefault(others, []).append(setting)
    return [_window(settings) for settings in groups.values() if len({s.values[LR_KEY] for s in settings}) > 1]


def _window(settings: Sequence[Setting]) -> RateWindow:
    by_rate = sorted(settings, key=lambda setting: float(setting.values[LR_KEY]))
    values = {key: value for key, value in by_rate[0].values.items() if key != LR_KEY}
    rates = [float(setting.values[LR_KEY]) for setting in by_rate]
    learned = [rate for rate, setting in zip(rates, by_rate, strict=True) if not setting.runs_not_learned]
    return RateWindow(values, tuple(rates), tuple(learned), _sensitivity(by_rate))


def _sensitivity(settings: Sequence[Setting]) -> float:
    """Average over the rates of the mean loss, capped at chance, minus the smallest mean loss."""
    losses = []
    for setting in settings:
        chance = next((run.chance_loss for run in setting.ended if not math.isnan(run.chance_loss)), math.nan)
        if math.isnan(chance):
            return math.nan
        capped = [min(loss, chance) for run in setting.ended if not math.isnan(loss := run.final("loss"))]
        capped += [chance] * (len(setting.ended) - len(capped))
        losses.append(statistics.fmean(capped))
    return statistics.fmean(losses) - min(losses)
