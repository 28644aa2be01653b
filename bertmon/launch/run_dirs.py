"""Which folder a launch and its runs have, whether they may have it, and what is noted there."""

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from bertmon import result, sanitize
from bertmon.config import from_hydra, require_same_run, run_identity
from bertmon.errors import InputError, require
from bertmon.launch.compose import PlannedRun
from bertmon.storage import atomic_write, content_hash

_LONGEST_NAME = 120  # bytes; file systems allow 255


def swept_overrides(overrides: Sequence[str], swept: Sequence[str] | None) -> dict[str, str]:
    """Those of the run's overrides ("key=value" each) that tell it from the others, the seed left out.

    swept: keys that differ between runs. None, for a single run: all that were given but the experiment, and what it
    goes on from.
    """
    given = dict(override.lstrip("+~").split("=", 1) for override in overrides if "=" in override)
    keys = given.keys() - {"experiment", "resume"} if swept is None else set(swept)
    return {key: value for key, value in given.items() if key in keys - {"seed"}}


def setting_dir_name(overrides: Sequence[str], swept: Sequence[str] | None, experiment: str) -> str:
    """What tells this run from the others but for its seed, as one folder name: `warmup_frac=0.1`.

    Keys go without their group where that is clear. Where nothing differs it is the experiment's name.
    """
    shown = swept_overrides(overrides, swept)
    short = {key: key.rpartition(".")[2] for key in shown}
    unclear = {name for name, count in Counter(short.values()).items() if count > 1}
    names = [f"{key if short[key] in unclear else short[key]}={value}" for key, value in shown.items()]
    full = ",".join(names) or experiment
    safe = re.sub(r"[^\w.=,+\-]", "-", full).encode()[:_LONGEST_NAME].decode(errors="ignore").strip(".") or experiment
    return safe if safe == full else f"{safe}-{content_hash(full)[:6]}"


def quote_override(value: object) -> str:
    """As the value of an override: Hydra would take commas for a sweep."""
    text = str(value)
    escaped = re.sub(r"(\\+)(?='|$)", r"\1\1", text).replace("'", "\\'")  # its parser leaves other backslashes alone
    return f"'{escaped}'" if re.search(r"[^\w./-]", text) else text


def sweep_dir(config: DictConfig) -> Path:
    """The launch's own folder."""
    if config.hydra.mode == RunMode.MULTIRUN:
        return Path(config.hydra.sweep.dir)
    return sweep_dir_of(Path(config.hydra.run.dir), str(config.hydra.sweep.subdir))


def sweep_dir_of(folder: Path, subdir: str) -> Path:
    """The launch's own folder, above that of a run."""
    return Path(str(folder).removesuffix(subdir)) if folder.match(subdir) else folder


def check_run_dirs(runs: Sequence[PlannedRun]) -> None:
    """Raise InputError unless each run has a folder of its own: a new one, or with `resume` its old one."""
    seen: dict[Path, str] = {}
    for folder, run in runs:
        if run.hydra.job.chdir:
            raise InputError(
                "hydra.job.chdir=true is not possible: files that are named relatively would not be found."
            )
        for key in ("sweep.subdir", "job.name", "output_subdir"):
            value = str(OmegaConf.select(run.hydra, key))
            within = not Path(value).is_absolute() and ".." not in Path(value).parts
            allowed = "a folder below the sweep's" if key == "sweep.subdir" else "a name without /"
            require(within and (key == "sweep.subdir" or "/" not in value), f"hydra.{key}", value, allowed)
        if folder is None:
            continue
        if sanitize.has_control_characters(str(folder)) or any(len(os.fsencode(name)) > 255 for name in folder.parts):
            allowed = "give names of at most 255 bytes, without control characters"
            raise InputError(f"{sanitize.sanitize_line(folder)} is not possible as a folder: {allowed}.")
        if not seen:
            _check_start(sweep_dir_of(folder, str(run.hydra.sweep.subdir)), run)
        overrides = " ".join(run.hydra.overrides.task)
        if folder in seen:
            raise InputError(f"Two runs of the sweep have one folder, {folder}: {seen[folder]} and {overrides}.")
        seen[folder] = overrides
        if run.resume:
            _check_same(folder, run)
        elif os.path.lexists(folder / result.RESULT_FILE):
            raise InputError(f"{folder} holds a run already: give another folder, or take this one away.")


def _check_start(start: Path, run: DictConfig) -> None:
    """Raise InputError unless a launch can have that folder: everything below it is read for the report."""
    if run.resume:
        earlier = Path(run.resume)
        if not os.path.isdir(earlier):
            raise InputError(
                f"resume={sanitize.sanitize_line(run.resume)} is no folder: give that of an earlier launch."
            )
        if any(earlier.iterdir()) and not (earlier / result.SWEEP_FILE).exists():
            raise InputError(
                f"resume={sanitize.sanitize_line(run.resume)} holds no launch: there is no {result.SWEEP_FILE} in it."
            )
    elif Path.cwd().is_relative_to(start.resolve()):
        mode = "sweep" if run.hydra.mode == RunMode.MULTIRUN else "run"
        raise InputError(f"hydra.{mode}.dir={start} is not possible: give a folder that holds nothing else.")


def _check_same(folder: Path, run: DictConfig) -> None:
    """Raise InputError unless a run that stands in the folder is this one."""
    there = result.read_json(folder / result.RESULT_FILE).get("settings")
    if isinstance(there, dict):  # else it has not come that far
        require_same_run(run_identity(asdict(from_hydra(run))), run_identity(there), folder)


def create_sweep_dir(start: Path, runs: Sequence[PlannedRun]) -> None:
    """Make the launch's folder and note its runs there, as far as they are known.

    Raises InputError where that cannot be, or where another launch has noted one of them, be it in the same second.
    """
    names = [str(folder.relative_to(start)) for folder, _ in runs if folder]
    try:
        start.mkdir(parents=True, exist_ok=True)
        try:
            (start / result.SWEEP_FILE).open("x").close()  # of two launches that come at once, one makes it
            earlier, taken = [], []
        except FileExistsError:
            earlier = result.read_sweep_file(start).get("runs", names)  # not whole: another launch is writing it
            taken = [name for name in names if name in earlier] if names else ["runs"]
        if taken and not runs[0][1].resume:
            way = f"go on with it by resume={start}, or give another folder"
            raise InputError(f"{start} holds a launch with {taken[0]} already: {way}.")
        plan = {"runs": list(dict.fromkeys([*earlier, *names])), "command": sys.argv[1:], "directory": os.getcwd()}
        atomic_write(start / result.SWEEP_FILE, (json.dumps(plan, indent=1) + "\n").encode())
    except OSError as error:
        raise InputError(f"{start} cannot be made: {error.strerror}.") from None


def resume_argv(start: Path) -> list[str]:
    """The arguments that go on with a launch, in the directory that it was started from. Raises InputError."""
    plan = result.read_sweep_file(start)
    command, where = plan.get("command"), plan.get("directory")
    words = isinstance(command, list) and all(isinstance(word, str) for word in command)
    if not (isinstance(where, str) and isinstance(command, list) and words):
        raise InputError(f"{sanitize.sanitize_line(start)} is no launch: there is no whole {result.SWEEP_FILE} in it.")
    directory = Path(where)
    if not os.path.isdir(directory):  # unlike pathlib, without an error for a name that is too long
        raise InputError(
            f"{sanitize.sanitize_line(start)} was started in {sanitize.sanitize_line(where)}, which is not there any more."
        )
    resume = f"resume={quote_override(os.path.relpath(start.resolve(), directory))}"
    return [str(directory), *(word for word in command if not word.startswith("resume=")), resume]
