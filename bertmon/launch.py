"""Before the first run and after the last: the choice of experiment, the check of every combination, folder names.

Knows Hydra: its callbacks, its sweeps, its overrides. A mistake in any run of a sweep is told here, before any run.
"""

import atexit
import json
import logging
import math
import os
import re
import shlex
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from bertmon import board, data, distributed, model, record, step, terminal, tokens, worker
from bertmon.cache import digest, write_atomic
from bertmon.compare import events, page, words
from bertmon.config import LARGEST, InputError, RunConfig, from_hydra, identity, require, require_same

_LONGEST_NAME = 120  # bytes; file systems allow 255
_MOST_RUNS = 10_000  # of a sweep; each takes a tenth of a second to compose
_GROUPS = ("experiment", "data", "model", "optimizer", "schedule", "monitor")
_EXTRAS = {
    "launcher/joblib": "joblib",
    "launcher/ray": "ray",
    "launcher/submitit_local": "slurm",
    "launcher/submitit_slurm": "slurm",
    "sweeper/optuna": "optuna",
}
"""What conf/hydra has beside a plugin's own config of the same name, and the extra that installs the plugin."""
_BASIC = ("basic_launcher.BasicLauncher", "basic_sweeper.BasicSweeper")
_SEARCH = "hydra_plugins.bertmon.Search"  # Hydra takes sweepers from this package alone
_OPTUNA = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
_ELSEWHERE = ("submitit_slurm", "ray", "ray_aws")  # launchers whose runs may see other devices than this machine has


def register() -> None:
    """Tell Hydra which experiment `auto` is on this machine, and what conf/ asks for by a resolver."""
    import torch

    chosen = "article" if torch.cuda.is_available() else "quickstart"
    store = ConfigStore.instance()
    store.store(group="experiment", name="auto", node={"defaults": [chosen, "_self_"]}, package="_global_")
    _set_plugins_configs_aside(store)
    OmegaConf.register_new_resolver("bertmon.cell", cell_name, replace=True)
    OmegaConf.register_new_resolver("bertmon.start", lambda resume, now: resume or f"multirun/{now}", replace=True)
    OmegaConf.register_new_resolver("bertmon.gpus", torch.cuda.device_count, replace=True)
    OmegaConf.register_new_resolver("bertmon.gpus_each", lambda: min(torch.cuda.device_count(), 1), replace=True)
    OmegaConf.register_new_resolver("bertmon.jobs", jobs, replace=True)


def _set_plugins_configs_aside(store: ConfigStore) -> None:
    """Move the launchers' own configs to hydra/launcher/schema, where conf/hydra/launcher builds on them.

    Hydra does not take a file and a plugin's config of one name.
    """
    Plugins.instance()  # they are stored as the plugins are found
    for path in _EXTRAS:
        group, _, name = path.rpartition("/")
        folder: dict[str, Any] = store.repo["hydra"][group]
        if stored := folder.pop(f"{name}.yaml", None):
            store.store(group=f"hydra/{group}/schema", name=name, node=stored.node)


def jobs() -> int:
    """Runs at a time on this machine: as many as it has GPUs, or cores where it has none."""
    import joblib
    import torch

    return torch.cuda.device_count() or int(joblib.cpu_count(only_physical_cores=True))


def start_together() -> None:
    """Of several processes: one moment names the folder of all, and the first one alone speaks and writes."""
    if distributed.size() == 1:
        return
    now = distributed.agreed(time.strftime("%Y-%m-%d_%H-%M-%S"))
    OmegaConf.register_new_resolver("bertmon.start", lambda resume, _: resume or f"multirun/{now}", replace=True)
    if distributed.rank():
        logging.disable()
        os.environ["TQDM_DISABLE"] = "1"
        sys.argv += [f"hydra/{kind}_logging=disabled" for kind in ("job", "hydra")] + ["hydra.output_subdir=null"]


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise InputError for a group whose choice is no name, where Hydra's own code ends in an assertion, and for bytes
    that are no text, which no result.json can hold.
    """
    for argument in arguments:
        if re.search("[\ud800-\udfff]", argument):
            raise InputError(f"{terminal.line(argument)} is not possible: give UTF-8.")
        key, _, value = argument.partition("=")
        if key in _GROUPS and re.search(r"(^|,)(null|true|false|[-+]?[0-9.][0-9.e+-]*)(,|$)", value, re.IGNORECASE):
            raise InputError(f"{argument} is not possible: give the name of a file in conf/{key}.")


def message(error: BaseException) -> str:
    """What went wrong with the command line, for a terminal."""
    cause = f"\n{error.__cause__}" if error.__cause__ else ""
    if isinstance(error, HydraException | OmegaConfBaseException):
        told = [each for each in f"{error}{cause}".split("\n") if not re.match(r" +(reference|object)_type=", each)]
        return terminal.lines("\n".join(told))
    words = terminal.line(shlex.join(sys.argv[1:]), 1000)
    root = error.__cause__ or error
    why = f"{type(root).__name__}: {root}".removesuffix(": ")
    return terminal.lines(f"No run can be made of {words} ({why}). HYDRA_FULL_ERROR=1 shows where.")


def differing(overrides: Sequence[str], swept: Sequence[str] | None) -> dict[str, str]:
    """Those of the run's overrides ("key=value" each) that tell it from the others, the seed left out.

    swept: keys that differ between runs. None, for a single run: all that were given but the experiment, and what it
    goes on from.
    """
    given = dict(override.lstrip("+~").split("=", 1) for override in overrides if "=" in override)
    keys = given.keys() - {"experiment", "resume"} if swept is None else set(swept)
    return {key: value for key, value in given.items() if key in keys - {"seed"}}


def cell_name(overrides: Sequence[str], swept: Sequence[str] | None, experiment: str) -> str:
    """What tells this run from the others but for its seed, as one folder name: `warmup_frac=0.1`.

    Keys go without their group where that is clear. Where nothing differs it is the experiment's name.
    """
    shown = differing(overrides, swept)
    short = {key: key.rpartition(".")[2] for key in shown}
    unclear = {name for name, count in Counter(short.values()).items() if count > 1}
    names = [f"{key if short[key] in unclear else short[key]}={value}" for key, value in shown.items()]
    full = ",".join(names) or experiment
    safe = re.sub(r"[^\w.=,+\-]", "-", full).encode()[:_LONGEST_NAME].decode(errors="ignore").strip(".") or experiment
    return safe if safe == full else f"{safe}-{digest(full)[:6]}"


_Listed = tuple[Path | None, DictConfig]
"""A run, composed, with its folder; None where that is not known yet."""


class Door(Callback):
    """Hydra calls it before anything runs. What is wrong is said in one message, and the program ends."""

    def __init__(self, swept: Sequence[str] | None = None) -> None:
        del swept  # kept in the config for cell_name

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._open(config, _the_run)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._open(config, _combinations)

    def _open(self, config: DictConfig, listed: Callable[[DictConfig], Iterator[_Listed]]) -> None:
        if distributed.rank():
            list(listed(config))  # it notes in `config` what is swept
            try:
                distributed.agreed(None)  # nothing may be made before the first process has checked everything
            except RuntimeError:
                sys.exit(1)  # it has told why
            return
        terminal.guard_logs()
        try:
            print(_choice_of_experiment(config), flush=True)
            _require_plugins(config)
            runs = list(listed(config))
            if not runs:
                raise InputError("The sweep has no run: a glob finds nothing.")
            settings = [from_hydra(run) for _, run in runs]
            _check_folders(runs)
            check(settings, devices=config.hydra.runtime.choices["hydra/launcher"] not in _ELSEWHERE)
            start = _start_of(config)
            _prepare(start, runs)
            distributed.agreed(None)
        except (InputError, HydraException, OmegaConfBaseException) as error:
            sys.exit(message(error))
        except Exception:  # Hydra would turn a callback's exception into a warning and go on
            traceback.print_exc()
            sys.exit(1)
        if _has_workers(config) and not config.resume:  # a run that is started once more goes on, as is its launch's
            escaped = str(start).replace("'", "\\'")
            with read_write(config), open_dict(config):
                config.hydra.overrides.task.append(f"resume='{escaped}'")
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # Ray would leave out lines that differ in numbers alone
        if config.hydra.runtime.choices["hydra/launcher"] == "joblib":
            worker.end_pool_first(start)
        atexit.register(_close, start)


def _require_plugins(config: DictConfig) -> None:
    """Raise InputError unless the launcher and the sweeper that were chosen are installed, and can start anything."""
    installed = Plugins.instance().class_name_to_class
    if _OPTUNA in installed and config.hydra.sweeper._target_ == _SEARCH:
        from bertmon.search import Search  # takes half a second

        installed[_SEARCH] = Search
    for group in ("launcher", "sweeper"):
        choice = config.hydra.runtime.choices[f"hydra/{group}"]
        extra = _EXTRAS.get(f"{group}/{choice}")
        if extra and config.hydra[group]._target_ not in installed:
            raise InputError(f"hydra/{group}={choice} is not installed: pip install 'bertmon[{extra}]' brings it.")
    for key in ("launcher.n_jobs", "sweeper.n_jobs", "sweeper.n_trials"):
        number = OmegaConf.select(config.hydra, key, default=1)
        everything = number == -1 and key == "launcher.n_jobs"  # joblib's word for all cores
        whole = isinstance(number, int) and number >= 1
        require(whole or everything, f"hydra.{key}", number, "a whole number of at least 1")


@contextmanager
def at_work(job: HydraConf, name: str) -> Iterator[None]:
    """Around a run: what its launcher asks for. job: Hydra's part of its config."""
    choice = job.runtime.choices["hydra/launcher"]
    with ExitStack() as stack:
        if job.mode == RunMode.MULTIRUN and choice != "basic":
            stack.enter_context(worker.beside_others(name))
        if job.mode == RunMode.MULTIRUN and choice == "joblib":
            stack.enter_context(worker.in_pool())
        yield


def _has_workers(config: DictConfig) -> bool:
    """Whether a run may be started more than once: by a launcher with workers, or by a sweeper that asks again."""
    targets = (str(config.hydra.launcher._target_), str(config.hydra.sweeper._target_))
    return config.hydra.mode == RunMode.MULTIRUN and not all(map(str.endswith, targets, _BASIC))


def _close(start: Path) -> None:
    """The last words: the sweep's answer, and how to see more of it."""
    try:
        sweep = page.write([start], start)
        events.write(sweep, start)
        print(f"\n{words.told(sweep)}\nReport: {start / page.HTML}", flush=True)
    except Exception as error:  # the runs are what they are, and the way to them is told below
        print(f"The report could not be written ({type(error).__name__}: {error}).", file=sys.stderr)
    print(f"To see it: {shlex.join(board.command(start))}", flush=True)


def check(configs: Sequence[RunConfig], *, devices: bool = True) -> None:
    """Raise InputError for whatever can be found wrong without training: devices, files, categories, models.

    What is read and trained on the way, corpora and vocabularies, stays in the cache for the runs.
    devices: whether the runs see those of this machine.
    """
    for device in dict.fromkeys(config.device for config in configs) if devices else ():
        step.pick_device(device)
    seen: list[object] = []
    for config in configs:
        task = (config.data, config.model, config.cache)
        if task not in seen:
            seen.append(task)
            corpus = data.load(config.data, config.cache_folder())
            steps = config.train.epochs * -(-len(corpus.train) // config.train.batch_size)
            require(
                steps <= LARGEST, "train.epochs", config.train.epochs, f"so few that there are at most {LARGEST} steps"
            )
            vocabulary = tokens.load_vocabulary(config.model, corpus.train.texts, config.cache_folder())
            model.check(
                config.model,
                label_names=corpus.label_names,
                vocab_size=vocabulary.size,
                pad_id=vocabulary.pad_id,
                max_length=config.data.max_length,
            )


def _the_run(config: DictConfig) -> Iterator[_Listed]:
    yield Path(config.hydra.run.dir), config


def _combinations(config: DictConfig) -> Iterator[_Listed]:
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
    if not str(sweeper._target_).endswith(_BASIC):
        for overrides in _each_value(list(last.values())):
            yield None, loader.load_sweep_config(config, overrides)
        return
    if not all(override.is_discrete_sweep() for override in last.values() if override.is_sweep_override()):
        raise InputError("An interval is not possible with Hydra's own sweeper: give values, or a range.")
    count = math.prod(map(_choices, last.values()))
    if count > _MOST_RUNS:
        raise InputError(f"A sweep of {count} runs is not possible: give values for at most {_MOST_RUNS}.")
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


def _each_value(parsed: Sequence[Override]) -> Iterator[list[str]]:
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


def _check_folders(runs: Sequence[_Listed]) -> None:
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
        if terminal.controls(str(folder)) or any(len(os.fsencode(name)) > 255 for name in folder.parts):
            allowed = "give names of at most 255 bytes, without control characters"
            raise InputError(f"{terminal.line(folder)} is not possible as a folder: {allowed}.")
        if not seen:
            _check_start(start_folder(folder, str(run.hydra.sweep.subdir)), run)
        overrides = " ".join(run.hydra.overrides.task)
        if folder in seen:
            raise InputError(f"Two runs of the sweep have one folder, {folder}: {seen[folder]} and {overrides}.")
        seen[folder] = overrides
        if run.resume:
            _check_same(folder, run)
        elif os.path.lexists(folder / record.NAME):
            raise InputError(f"{folder} holds a run already: give another folder, or take this one away.")


def _check_start(start: Path, run: DictConfig) -> None:
    """Raise InputError unless a launch can have that folder: everything below it is read for the report."""
    if run.resume:
        earlier = Path(run.resume)
        if not os.path.isdir(earlier):
            raise InputError(f"resume={terminal.line(run.resume)} is no folder: give that of an earlier launch.")
        if any(earlier.iterdir()) and not (earlier / record.SWEEP).exists():
            raise InputError(f"resume={terminal.line(run.resume)} holds no launch: there is no {record.SWEEP} in it.")
    elif Path.cwd().is_relative_to(start.resolve()):
        mode = "sweep" if run.hydra.mode == RunMode.MULTIRUN else "run"
        raise InputError(f"hydra.{mode}.dir={start} is not possible: give a folder that holds nothing else.")


def command_of(start: Path) -> list[str]:
    """The arguments that go on with a launch, in the directory that it was started from. Raises InputError."""
    plan = record.plan(start)
    command, where = plan.get("command"), plan.get("directory")
    words = isinstance(command, list) and all(isinstance(word, str) for word in command)
    if not (isinstance(where, str) and isinstance(command, list) and words):
        raise InputError(f"{terminal.line(start)} is no launch: there is no whole {record.SWEEP} in it.")
    directory = Path(where)
    if not os.path.isdir(directory):  # unlike pathlib, without an error for a name that is too long
        raise InputError(f"{terminal.line(start)} was started in {terminal.line(where)}, which is not there any more.")
    resume = f"resume={os.path.relpath(start.resolve(), directory)}"
    return [str(directory), *(word for word in command if not word.startswith("resume=")), resume]


def _check_same(folder: Path, run: DictConfig) -> None:
    """Raise InputError unless a run that stands in the folder is this one."""
    there = record.load(folder / record.NAME).get("settings")
    if isinstance(there, dict):  # else it has not come that far
        require_same(identity(asdict(from_hydra(run))), identity(there), folder)


def _start_of(config: DictConfig) -> Path:
    """The launch's own folder."""
    if config.hydra.mode == RunMode.MULTIRUN:
        return Path(config.hydra.sweep.dir)
    return start_folder(Path(config.hydra.run.dir), str(config.hydra.sweep.subdir))


def start_folder(folder: Path, subdir: str) -> Path:
    """The launch's own folder, above that of a run."""
    return Path(str(folder).removesuffix(subdir)) if folder.match(subdir) else folder


def _prepare(start: Path, runs: Sequence[_Listed]) -> None:
    """Make the launch's folder and note its runs there, as far as they are known.

    Raises InputError where that cannot be, or where another launch has noted one of them, be it in the same second.
    """
    names = [str(folder.relative_to(start)) for folder, _ in runs if folder]
    try:
        start.mkdir(parents=True, exist_ok=True)
        try:
            (start / record.SWEEP).open("x").close()  # of two launches that come at once, one makes it
            earlier, taken = [], []
        except FileExistsError:
            earlier = record.plan(start).get("runs", names)  # not whole: another launch is writing it
            taken = [name for name in names if name in earlier] if names else ["runs"]
        if taken and not runs[0][1].resume:
            way = f"go on with it by resume={start}, or give another folder"
            raise InputError(f"{start} holds a launch with {taken[0]} already: {way}.")
        plan = {"runs": list(dict.fromkeys([*earlier, *names])), "command": sys.argv[1:], "directory": os.getcwd()}
        write_atomic(start / record.SWEEP, (json.dumps(plan, indent=1) + "\n").encode())
    except OSError as error:
        raise InputError(f"{start} cannot be made: {error.strerror}.") from None


def _choice_of_experiment(config: DictConfig) -> str:
    """The program's first line: which experiment, why, and how to choose another."""
    choice = str(config.hydra.runtime.choices.get("experiment"))
    options = GlobalHydra.instance().config_loader().get_group_options("experiment")
    others = " or ".join(f"experiment={name}" for name in options if name not in ("auto", config.experiment))
    if choice == "auto":
        why = "a CUDA device was found" if config.experiment == "article" else "no CUDA device was found"
        return f"experiment={config.experiment}, since {why}; choose another with {others}"
    return f"experiment={config.experiment}, as asked for; others are {others}"
