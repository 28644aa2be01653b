"""The folders of a launch and its runs, checks that they can be used, and sweep.json."""

import os
import shlex
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from bertmon.config import RunConfig, default_identity, require_same_run, run_identity
from bertmon.errors import InputError, StorageError, require
from bertmon.launch.command_line import program, resume_command
from bertmon.launch.compose import PlannedRun
from bertmon.launch.read_config import read_config
from bertmon.launch.run_names import quote_override
from bertmon.result import RESULT_FILE, SWEEP_FILE, Launch, RunResult, SweepFile, run_names
from bertmon.sanitize import has_control_characters, sanitize_line
from bertmon.storage import read_json

_MAX_NAME_BYTES = 255  # limit of most file systems


def sweep_dir_of_launch(config: DictConfig) -> Path:
    """The folder of a launch."""
    if config.hydra.mode == RunMode.MULTIRUN:
        return Path(config.hydra.sweep.dir)
    return sweep_dir_of_run(Path(config.hydra.run.dir), str(config.hydra.sweep.subdir))


def sweep_dir_of_run(run_dir: Path, subdir: str) -> Path:
    """The folder of the run's launch, in which the run has `subdir`; the run's own folder if it is elsewhere."""
    parts = Path(subdir).parts
    return run_dir.parents[len(parts) - 1] if run_dir.parts[-len(parts) :] == parts else run_dir


def check_run_dirs(runs: Sequence[PlannedRun], sweep_dir: Path) -> None:
    """Raise InputError unless each run has its own folder: a new one, or its previous one with `resume`."""
    first_use: dict[Path, str] = {}
    for run in runs:
        _check_hydra_paths(run.config)
        if run.run_dir is None:
            continue
        _check_name(run.run_dir)
        if not first_use:
            _check_sweep_dir(sweep_dir, run.config)
        overrides = " ".join(run.config.hydra.overrides.task)
        if run.run_dir in first_use:
            both = f"{first_use[run.run_dir]} and {overrides}"
            raise InputError(f"{run.run_dir}: expected a folder per run, got two runs in it: {both}.")
        first_use[run.run_dir] = overrides
        if run.config.resume:
            _check_same_run(run.run_dir, run.config)
        elif os.path.lexists(run.run_dir / RESULT_FILE):
            raise InputError(f"{run.run_dir} already contains a run: choose another folder or delete it.")
    if runs and runs[0].config.resume:
        _check_resumes_any([run.run_dir for run in runs if run.run_dir], sweep_dir)


def _check_hydra_paths(config: DictConfig) -> None:
    """Raise InputError for Hydra folder settings that bertmon does not support."""
    hydra = config.hydra
    require(not hydra.job.chdir, "hydra.job.chdir", "true", "false, since relative paths would not be found")
    for key in ("sweep.subdir", "job.name", "output_subdir"):
        value = str(OmegaConf.select(hydra, key))
        inside = not Path(value).is_absolute() and ".." not in Path(value).parts
        valid = inside and (key == "sweep.subdir" or "/" not in value)
        expected = "a folder inside the sweep's" if key == "sweep.subdir" else "a name without /"
        require(valid, f"hydra.{key}", value, expected)


def _check_name(run_dir: Path) -> None:
    too_long = any(len(os.fsencode(name)) > _MAX_NAME_BYTES for name in run_dir.parts)
    if too_long or has_control_characters(str(run_dir)):
        expected = f"names of at most {_MAX_NAME_BYTES} bytes without control characters"
        raise InputError(f"run folder: expected {expected}, got {sanitize_line(run_dir)}.")


def _check_sweep_dir(sweep_dir: Path, config: DictConfig) -> None:
    """Raise InputError unless a launch can use that folder, all of which is read for the report."""
    if config.resume:
        earlier = Path(config.resume)
        require(os.path.isdir(earlier), "resume", config.resume, "the folder of an earlier launch")
        is_launch = (earlier / SWEEP_FILE).exists() or not any(earlier.iterdir())
        require(is_launch, "resume", config.resume, f"a folder with a {SWEEP_FILE}")
        expected = f"the folder that hydra.{'sweep' if config.hydra.mode == RunMode.MULTIRUN else 'run'}.dir names"
        require(earlier.resolve() == sweep_dir.resolve(), "resume", config.resume, expected)
    elif Path.cwd().is_relative_to(sweep_dir.resolve()):
        mode = "sweep" if config.hydra.mode == RunMode.MULTIRUN else "run"
        raise InputError(
            f"hydra.{mode}.dir: expected a folder other than the current one and those above it, got {sweep_dir}."
        )


def _check_resumes_any(run_dirs: Sequence[Path], sweep_dir: Path) -> None:
    """Raise InputError if the earlier launch has runs, but none of this one's: it had a different command.

    If they have a run in common, this launch adds its other runs.
    """
    earlier, names = run_names(sweep_dir), [run_dir.relative_to(sweep_dir).as_posix() for run_dir in run_dirs]
    if names and earlier and set(earlier).isdisjoint(names):
        raise InputError(
            f"resume: expected a folder of the same command, got {sweep_dir}, which has none of its runs. "
            f"To resume the runs there: {resume_command(sweep_dir)}"
        )


def _check_same_run(run_dir: Path, config: DictConfig) -> None:
    """Raise InputError if the folder contains a different run."""
    fields = read_json(run_dir / RESULT_FILE)
    earlier = fields.get("config", fields.get("settings"))  # version 0.1 called it settings
    if isinstance(earlier, dict):  # else the run ended before it recorded its config
        require_same_run(run_identity(asdict(read_config(config))), run_identity(earlier), run_dir)


def check_same_search(sweep_dir: Path, config: RunConfig, swept: Collection[str], fingerprint: str) -> None:
    """Raise InputError if the trials in the folder of a search have other settings than `config`, or other data.

    The values of swept keys and groups may differ; fingerprint: of config's data.
    """

    def is_swept(key: str) -> bool:
        return any(key == each or key.startswith(f"{each}.") for each in swept)

    if "experiment" in swept:  # it sets any key
        return
    current = {key: value for key, value in run_identity(asdict(config)).items() if not is_swept(key)}
    for path in sorted(sweep_dir.rglob(RESULT_FILE)):
        result = RunResult.read(path.parent)
        if result and result.config:
            stored = run_identity(result.config)
            chosen = {key: value for key, value in {**default_identity(stored), **stored}.items() if is_swept(key)}
            require_same_run({**current, **chosen}, stored, path.parent)
            if not any(key.startswith("data.") for key in chosen):
                check_same_data(path.parent, fingerprint)


def check_same_data(run_dir: Path, fingerprint: str) -> None:
    """Raise InputError if the run in the folder was trained, completely or in part, on other data."""
    result = RunResult.read(run_dir)
    if result and result.data and result.data.fingerprint != fingerprint:
        raise InputError(
            f"{run_dir}: the data has changed since this run started. Restore it, or start a new sweep: the runs of "
            "this one would not be comparable."
        )


def create_sweep_dir(sweep_dir: Path, runs: Sequence[PlannedRun], command: Sequence[str]) -> None:
    """Create the launch's folder and list the runs known so far in its sweep.json.

    Raises InputError if another launch, even one started in the same second, has listed one of them, and StorageError
    if the folder cannot be created.
    """
    names = [run.run_dir.relative_to(sweep_dir).as_posix() for run in runs if run.run_dir]
    try:
        sweep_dir.mkdir(parents=True, exist_ok=True)
        sweep = SweepFile(tuple(names), tuple(command), os.getcwd())
        try:
            (sweep_dir / SWEEP_FILE).open("x").close()  # if two launches start at once, only one creates it
        except FileExistsError:
            earlier = SweepFile.read(sweep_dir)
            taken = [name for name in names if earlier is None or name in earlier.runs] if names else ["runs"]
            if taken and not runs[0].config.resume:  # earlier is None: another launch is writing it
                hint = f"resume it with resume={quote_override(sweep_dir)}, or choose another folder"
                raise InputError(f"{sweep_dir} already contains a launch with {taken[0]}: {hint}.") from None
            sweep = earlier.with_launch(*sweep.launches) if earlier else sweep
        sweep.write(sweep_dir)
    except OSError as error:
        raise StorageError(f"could not create {sweep_dir}: {error.strerror or error}.") from None


def resume_argvs(sweep_dir: Path, overrides: Sequence[str] = ()) -> list[list[str]]:
    """The `resume_argv` of each launch in the folder with unfinished runs; if there is none, of the last launch."""
    sweep = SweepFile.read(sweep_dir)
    if sweep is None:
        raise InputError(f"{sanitize_line(sweep_dir)}: not a sweep folder: {SWEEP_FILE} is missing or corrupt.")
    launches = sweep.launches
    unfinished = [each for each in launches if not each.runs or not all(map(_has_ended, _run_dirs(each, sweep_dir)))]
    return [resume_argv(sweep_dir, launch, overrides) for launch in unfinished or launches[-1:]]


def _run_dirs(launch: Launch, sweep_dir: Path) -> list[Path]:
    return [sweep_dir / name for name in launch.runs]


def _has_ended(run_dir: Path) -> bool:
    return RunResult.read_ended(run_dir) is not None


def resume_argv(sweep_dir: Path, launch: Launch, overrides: Sequence[str] = ()) -> list[str]:
    """The directory that the launch was started in, then the arguments that resume it there. Raises InputError.

    The launch's folder may have moved since. overrides: additional overrides, but not of keys that the launch sweeps.
    """
    if launch.command is None or launch.directory is None:
        raise InputError(f"{sanitize_line(sweep_dir)}: not a sweep folder: {SWEEP_FILE} is missing or corrupt.")
    _require_not_swept(overrides, launch.command)
    directory = launch.directory
    if not os.path.isdir(directory):  # unlike pathlib, does not raise if the name is too long
        command = [*program(), "run", *_resume_arguments(launch, sweep_dir.resolve()), *overrides]
        raise InputError(
            f"{sanitize_line(sweep_dir)} was started in {sanitize_line(directory)}, which no longer exists. Create "
            "that folder again, or run this from a folder where the relative paths of the sweep are valid: "
            f"{sanitize_line(shlex.join(command), 2000)}"
        )
    directory = os.path.realpath(directory)  # relative paths start at a link's target
    is_current = os.path.samefile(directory, os.curdir)  # else print absolute paths, which are valid here, too
    folder = os.path.relpath(sweep_dir.resolve(), directory) if is_current else str(sweep_dir.resolve())
    return [directory, *_resume_arguments(launch, Path(folder)), *overrides]


def _require_not_swept(overrides: Sequence[str], command: Sequence[str]) -> None:
    """Raise InputError for a new value of a key that the command sweeps over, which would drop runs."""
    parser = OverridesParser.create()
    earlier = [word for word in command if "=" in word and not word.startswith("-")]
    try:
        swept = [each.key_or_group for each in parser.parse_overrides(earlier) if each.is_sweep_override()]
    except HydraException:
        return  # the launch reports the error
    for word in overrides:
        key, _, value = word.lstrip("+~").partition("=")
        require(key not in swept, key, value, "no override, because the sweep varies this key (start a new sweep)")


def _resume_arguments(launch: Launch, folder: Path) -> list[str]:
    """The arguments that resume a launch whose folder is now `folder`, overriding the folder settings in its config."""
    dropped = ("resume", "hydra.run.dir", "hydra.sweep.dir")
    arguments = [word for word in launch.command or () if word.partition("=")[0].lstrip("+") not in dropped]
    resume = quote_override(folder)
    if "." in launch.runs:  # a single run in the launch's own folder
        return [*arguments, f"hydra.run.dir={resume}", f"resume={resume}"]
    run_dir = quote_override(folder / "${hydra.sweep.subdir}")
    return [*arguments, f"hydra.sweep.dir={resume}", f"hydra.run.dir={run_dir}", f"resume={resume}"]
