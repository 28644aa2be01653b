"""`bertmon range OVERRIDE...`: find the model's cliff, and learning rates at a given distance below it."""

import argparse
import logging
import math
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from bertmon.compare.rates import LR_KEY
from bertmon.config import RunConfig
from bertmon.errors import InputError, require
from bertmon.launch import command_line
from bertmon.launch.compose import load_config
from bertmon.launch.preflight import check_configs
from bertmon.launch.threads import configure_threads
from bertmon.notation import format_rate
from bertmon.schedule import warmup_steps
from bertmon.training.plan import warmup_frac
from bertmon.training.rate_range import RateRange, find_cliff, peak_factor

WARMUPS = (0.0, 0.06, 0.1, 0.3, 0.5, 0.7)
_EARLY = 10  # times --from: in the study, no run failed below this


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bertmon range",
        description="Raise the learning rate in one short run until gradients vanish, and print rates at a distance "
        "below that point. Writes no files.",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="the planned run, as for bertmon run")
    parser.add_argument("--distance", type=float, default=2.0, help="factor below the cliff (default: 2)")
    parser.add_argument("--from", dest="lowest", type=float, default=1e-4, help="lowest rate (default: 1e-4)")
    parser.add_argument("--to", dest="highest", type=float, default=2e-2, help="highest rate (default: 2e-2)")
    parser.add_argument("--config-dir", type=Path, help="folder with your own presets, as for bertmon run")
    args = parser.parse_intermixed_args(arguments)
    configure_threads()
    try:
        require(1 <= args.distance < math.inf, "--distance", args.distance, "a finite factor of at least 1")
        require(0 < args.lowest < math.inf, "--from", args.lowest, "a finite rate above 0")
        require(args.lowest < args.highest < math.inf, "--to", args.highest, "a finite rate above --from")
        command_line.check_arguments(args.overrides)
        _require_single_run(args.overrides)
        overrides = command_line.with_own_data_defaults(args.overrides, args.config_dir)
        config = load_config(overrides, config_dir=args.config_dir)
        check_configs([config])
        with _silence_verdicts():
            outcome = find_cliff(config, args.lowest, args.highest)
        presets = [] if args.config_dir is None else ["--config-dir", str(args.config_dir)]
        print("\n".join(report(config, outcome, args.distance, args.lowest, [*presets, *args.overrides])))
    except (InputError, HydraException, OmegaConfBaseException) as error:
        sys.exit(command_line.format_error(error))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _require_single_run(overrides: Sequence[str]) -> None:
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        value = override.input_line.partition("=")[2] if override.input_line else ""
        require(
            not override.is_sweep_override(), override.key_or_group, value, "one value, as range plans a single run"
        )


@contextmanager
def _silence_verdicts() -> Iterator[None]:
    """Do not log the verdicts of a run that is meant to fail."""
    log = logging.getLogger("bertmon.monitor.monitor")
    was_disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was_disabled


def report(
    config: RunConfig, outcome: RateRange, distance: float, lowest: float, overrides: Sequence[str]
) -> list[str]:
    """Lines of up to 80 columns, and a command: the cliff, the plan's peak, and rates at a distance below the cliff.

    overrides: the flags and overrides that `config` was composed from.
    """
    last = format_rate(outcome.last_rate, 2)
    if outcome.cliff is None:
        return [f"No cliff found: training does not fail at effective rates up to {last}."]
    total_steps, peak = len(outcome.plan), float(outcome.plan.effective_lr.max())
    if not peak:
        return [f"Cliff: about {format_rate(outcome.cliff, 2)}. The learning rate of this plan is 0 at every step."]
    limit = outcome.cliff / distance
    side = "above it" if peak > outcome.cliff else "below it" if peak <= limit else "below it, but not by that factor"
    warning = f"This early, the cliff is uncertain: start lower, with --from {format_rate(lowest / _EARLY)}."
    warnings = [warning] if outcome.last_rate < _EARLY * lowest else []
    lines = [
        f"Gradients vanish at an effective rate of {last}, after {outcome.steps} steps.",
        *warnings,
        f"Cliff: about {format_rate(outcome.cliff, 2)}. Most runs with a larger peak do not learn.",
        f"This plan peaks at {format_rate(peak, 2)}: {side}.",
    ]
    lines += ["", f"optimizer.lr whose peak is a factor of {distance:g} below the cliff, in {total_steps} steps:", ""]
    lines += _rate_table(config, limit, total_steps)
    adam, planned = config.optimizer, warmup_frac(config.schedule, total_steps)
    rate = limit / peak_factor(config, total_steps, warmup_frac=planned, bias_correction=adam.bias_correction)
    others = [word for word in overrides if not word.startswith(f"{LR_KEY}=")]
    return [*lines, "", shlex.join([*command_line.program(), "run", *others, f"{LR_KEY}={_round_down(rate)}"])]


def _rate_table(config: RunConfig, limit: float, total_steps: int) -> Iterator[str]:
    """Lines with the learning rates whose peak is `limit`, by warm-up and bias correction."""
    yield "schedule.warmup_frac  optimizer.bias_correction=false  =true"
    decay = warmup_steps(config.schedule.decay_frac or 0.0, total_steps)
    for warmup in sorted({*WARMUPS, warmup_frac(config.schedule, total_steps)}):
        if warmup_steps(warmup, total_steps) + decay > total_steps:
            continue
        factors = [
            peak_factor(config, total_steps, warmup_frac=warmup, bias_correction=corrected)
            for corrected in (False, True)
        ]
        without, corrected = (_round_down(limit / factor) for factor in factors)
        yield f"{warmup:<20.3g}  {without:31}  {corrected}"


def _round_down(rate: float) -> str:
    """Round down to two significant digits."""
    unit = 10.0 ** (math.floor(math.log10(rate)) - 1)
    return format_rate(math.floor(rate / unit * (1 + 1e-12)) * unit, 2)
