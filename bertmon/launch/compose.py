"""The runs of a launch, each composed before any of them starts. Knows Hydra's sweeps and overrides."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, open_dict, read_write

from bertmon import distributed
from bertmon.errors import InputError

BASIC = ("basic_launcher.BasicLauncher", "basic_sweeper.BasicSweeper")
"""Hydra's own, by the ends of their names."""
_MANY_RUNS = 100
_MOST_RUNS = 10_000  # of a sweep; each takes a tenth of a second to compose

PlannedRun = tuple[Path | None, DictConfig]
"""A run, composed, with its folder; None where that is not known yet."""


def single_run(config: DictConfig) -> Iterator[PlannedRun]:
    yield Path(config.hydra.run.dir), config


def compose_runs(config: DictConfig) -> Iterator[PlannedRun]:
    """Every run of the sweep, composed, with its folder. Notes in `config` what is swept and what `auto` was.

    The runs of another sweeper than Hydra's own are not known beforehand: each value and bound is tried once.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    loader = GlobalHydra.instance().config_loader()
    sweep = Path(config.hydra.sweep.dir)  # first of all: the runs composed below take the moment in it from here
    sweeper = config.hydra.sweeper
    given = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    if seeds := sweeper.get("seeds"):
        if any(override.lstrip("+").startswith("seed=") for override in (*given, *config.hydra.overrides.task)):
            raise InputError("seed is not possible beside hydra.sweeper.seeds: leave it out.")
        given.append(f"seed={','.join(map(str, seeds))}")
    given += config.hydra.overrides.task
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(given)
    last = {override.key_or_group: override for override in parsed}
    swept = [key for key, override in last.items() if override.is_sweep_override()]
    with read_write(config), open_dict(config):
        config.hydra.overrides.hydra.append(f"hydra.callbacks.bertmon.swept=[{','.join(swept)}]")
        if config.hydra.runtime.choices.get("experiment") == "auto":  # workers on other machines must not choose anew
            config.hydra.overrides.task.append(f"experiment={config.experiment}")
    if not str(sweeper._target_).endswith(BASIC):
        for overrides in _covering_overrides(list(last.values())):
            yield None, loader.load_sweep_config(config, overrides)
        return
    if not all(override.is_discrete_sweep() for override in last.values() if override.is_sweep_override()):
        raise InputError("An interval is not possible with Hydra's own sweeper: give values, or a range.")
    count = math.prod(map(_choices, last.values()))
    if count > _MOST_RUNS:
        raise InputError(f"A sweep of {count} runs is not possible: give values for at most {_MOST_RUNS}.")
    if count >= _MANY_RUNS and distributed.rank() == 0:
        print(f"checking {count} runs before the first one starts, about {count / 12:.0f} s", flush=True)
    for number, overrides in enumerate(BasicSweeper.split_arguments(parsed, None)[0]):
        run = loader.load_sweep_config(config, overrides)
        with open_dict(run):
            run.hydra.job.num, run.hydra.job.id = number, str(number)
        yield sweep / str(run.hydra.sweep.subdir), run


def _choices(override: Override) -> int:
    """How many values a key takes in a sweep; of a glob at least one."""
    value = override.value()
    if isinstance(value, RangeSweep) and value.start is not None and value.stop is not None:
        return max(math.ceil((value.stop - value.start) / value.step), 0)
    return len(value.list) if isinstance(value, ChoiceSweep) else 1


def _covering_overrides(parsed: Sequence[Override]) -> Iterator[list[str]]:
    """Overrides of as few runs as have every value, and both bounds of every interval."""
    values = []
    for override in parsed:
        value = override.value()
        if isinstance(value, IntervalSweep):
            texts = [str(value.start), str(value.end)]
        elif override.is_sweep_override():
            texts = list(override.sweep_string_iterator())
        else:
            texts = [override.get_value_element_as_str()]
        values.append([f"{override.get_key_element()}={text}" for text in texts])
    for number in range(max(map(len, values), default=0)):
        yield [texts[min(number, len(texts) - 1)] for texts in values]
