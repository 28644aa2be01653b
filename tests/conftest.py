"""Shared fixtures and helpers: tiny tasks, synthetic sweeps, and the program as a user starts it.

Test modules import constants and functions with `from conftest import ...` and get fixtures by name.
"""

import contextlib
import dataclasses
import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from warm_python import WarmProcess, WarmPython

from bertmon import config
from bertmon.config import FilesConfig, ModelConfig, RunConfig, ScheduleConfig, TrainConfig
from bertmon.monitor.history import HISTORY_FILE, STATISTICS, History, RunPlan, Snapshot, WeightTable

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: test workers and their processes share cores
sys.modules.setdefault("conftest", sys.modules[__name__])  # `from conftest import X` gets this module, not a copy

SHARED = Path(__file__).parents[2] / "shared" / "data"
TIMEOUT = 600
"""Maximum seconds for a process or a condition; a loaded machine is many times slower than an idle one."""

needs_newsgroups = pytest.mark.skipif(
    not (SHARED / "scikit_learn_data").is_dir(), reason="20 newsgroups are not on this machine"
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several workers, run files with slow tests first, so that no worker is left with one at the end."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


# --- a task small enough to train in a second -----------------------------------------------------

TINY = ModelConfig(
    num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=32, max_position_embeddings=32
)
TINY_OVERRIDES = [
    "model.num_hidden_layers=2",
    "model.hidden_size=16",
    "model.intermediate_size=32",
    "data.max_length=32",
    "train.batch_size=8",
    "monitor.every=4",
]
TEXTS = ["The sea, the sea!", "a boat upon a wave", "", "boats " * 50, "naïve Äpfel 漢字 \x00 ☃"]
BUILD_MODEL = {"label_names": ("no", "yes"), "vocab_size": 120, "pad_id": 0, "max_length": 32}
"""Arguments of model.build_model."""


def write_texts(path: Path, count: int, seed: int) -> Path:
    """Write a .csv of `count` texts of 3 to 30 words, most of which are about the label."""
    words = {"sea": ["boat", "wave", "fish", "salt"], "sky": ["cloud", "bird", "wind", "star"]}
    rng = random.Random(seed)
    lines = ["text,label"]
    for number in range(count):
        label = ("sea", "sky")[number % 2]
        text = rng.choices(words[label] + ["the", "a", "and"], k=rng.randint(3, 30))
        lines.append(f"{' '.join(text)},{label}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def settings(tmp_path: Path) -> RunConfig:
    """A run of 2 epochs of 6 steps, on the CPU, over files in tmp_path; evaluated at steps 0, 6 and 12."""
    return small_run(tmp_path)


def small_run(folder: Path) -> RunConfig:
    """The config of the fixture `settings`, over files in `folder`."""
    return RunConfig(
        seed=1,
        device=config.Device.cpu,
        cache_dir=str(folder / "cache"),
        data=FilesConfig(
            train=str(write_texts(folder / "train.csv", 44, seed=1)),
            test=str(write_texts(folder / "test.csv", 10, seed=2)),
            max_length=32,
        ),
        model=dataclasses.replace(TINY),
        schedule=ScheduleConfig(warmup_frac=0.25),
        train=TrainConfig(epochs=2, batch_size=8, log_every=2, eval_every=100),
    )


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """The command line's arguments for a run of 3 epochs of 5 steps over files in tmp_path."""
    train, test = write_texts(tmp_path / "train.csv", 40, seed=1), write_texts(tmp_path / "test.csv", 10, seed=2)
    return ["data=files", f"data.train={train}", f"data.test={test}", *TINY_OVERRIDES]


@pytest.fixture
def demo_files(files: list[str]) -> list[str]:
    """`files` with the quickstart's model and optimizer; data=files alone would fine-tune."""
    return ["experiment=quickstart", *files]


def save_pretrained_bert(folder: Path, **changes: int) -> dict[str, Any]:
    """Save a small pretrained BERT in `folder` in the format of transformers. Returns its weights."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(7)
    small = {
        "vocab_size": 120,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    }
    bert = BertModel(BertConfig(**(small | changes)))
    bert.save_pretrained(folder)
    return bert.state_dict()


# --- processes ------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def default_signals():
    """Started processes would ignore the signals that this one ignores: under nohup, or as a shell's background job."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture
def start_process(tmp_path: Path):
    """Start a command in tmp_path with no GPU; returns its Popen, with stdout and stderr as text pipes.

    At the end of the test, these processes and all their descendants are killed.
    """
    mark = f"BERTMON_TEST={uuid.uuid4()}"

    def start(command: list[str], *, cwd: Path = tmp_path, **environment: str) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=cwd, env=_variables(mark, environment), **pipes)

    yield start
    _kill_marked(mark)


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory):
    """The WarmPython of this pytest process."""
    program = WarmPython(tmp_path_factory.mktemp("warm"))
    yield program
    program.close()


@pytest.fixture
def start_warm(warm_python, start_process, tmp_path: Path):
    """Like `start_process`, for `python -m MODULE ARGUMENT...` in a process with preloaded imports.

    If PYTHONPATH has changed or the test sets variables, which could affect imports, a new Python is started.
    """
    mark = f"BERTMON_TEST={uuid.uuid4()}"
    python_path, started = os.environ.get("PYTHONPATH"), []

    def start(module: str, *arguments: str, cwd: Path = tmp_path, cache: str, **environment: str):
        environment |= {"XDG_CACHE_HOME": cache}
        if len(environment) > 1 or os.environ.get("PYTHONPATH") != python_path:
            return start_process([sys.executable, "-m", module, *arguments], cwd=cwd, **environment)
        started.append(warm_python.start(module, arguments, cwd, _variables(mark, environment)))
        return started[-1]

    yield start
    for process in started:
        process.kill()
    _kill_marked(mark)


def _variables(mark: str, environment: dict[str, str]) -> dict[str, str]:
    return os.environ | {"CUDA_VISIBLE_DEVICES": ""} | environment | dict([mark.split("=")])


def _kill_marked(mark: str) -> None:
    while remaining := [process for process in psutil.process_iter() if _has_mark(process, mark)]:
        for process in remaining:
            process.kill()
        psutil.wait_procs(remaining, timeout=5)


def _has_mark(process: psutil.Process, mark: str) -> bool:
    name, value = mark.split("=")
    try:
        return process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def completed(process: subprocess.Popen | WarmProcess) -> subprocess.CompletedProcess:
    """Wait for a process of `start_process` or `start_warm`."""
    stdout, stderr = process.communicate(timeout=TIMEOUT)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.fixture
def bertmon(start_warm, tmp_path_factory):
    """Run `python -m bertmon.run` in tmp_path, with a cache that only tests use.

    Returns the CompletedProcess, or the process with wait=False.
    """
    cache = str(tmp_path_factory.getbasetemp() / "cache")

    def start(*arguments: str, wait: bool = True, **environment: str):
        process = start_warm("bertmon.run", *arguments, cache=cache, **environment)
        return completed(process) if wait else process

    return start


def wait_until(condition: Callable[[], Any], process: subprocess.Popen | WarmProcess | None = None) -> Any:
    """The first true value of `condition`. Fails if `process` ends first, or after TIMEOUT seconds."""
    end = time.monotonic() + TIMEOUT
    while not (value := condition()):
        if process is not None and process.poll() is not None and not condition():
            pytest.fail(f"the process ended before: {process.communicate()}")
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)
    return value


def interrupt(process: subprocess.Popen | WarmProcess, number: int = signal.SIGINT) -> subprocess.CompletedProcess:
    """Send a signal to a process of `start_process` and wait for its end."""
    process.send_signal(number)
    return completed(process)


def results(folder: Path) -> dict[str, dict]:
    """result.json of each run, by its name in TensorBoard."""
    return {
        str(path.parent.relative_to(folder)): json.loads(path.read_text())
        for path in sorted(folder.rglob("result.json"))
    }


# --- files of runs and sweeps, without training ---------------------------------------------------

STEPS = 100


def weight_table(depth: int) -> WeightTable:
    """Two linear weights in each of `depth` encoder layers, word embeddings and a classifier."""
    labels = ["embeddings.word_embeddings"]
    labels += [f"enc.l.{number}.{name}" for number in range(depth) for name in ("attention.query", "output.dense")]
    labels.append("classifier")
    depths = [None, *(number for number in range(depth) for _ in range(2)), None]
    return WeightTable(tuple(labels), ("embedding", *["linear"] * (len(labels) - 1)), tuple(depths))


def synthetic_history(*, learns: bool, depth: int = 2, every: int = 20) -> History:
    """A history of STEPS steps with random statistics: the loss falls or stays constant."""
    rng = np.random.default_rng(0)
    lr = np.full(STEPS, 1e-3)
    history = History(RunPlan(lr, 2 * lr, chance_loss=1.4, warmup_frac=0.1, bias_correction=False))
    history.losses = [1.4 - learns * step / STEPS for step in range(STEPS)]
    history.grad_norms = STEPS * [1.0]
    weights = weight_table(depth)
    for step in range(0, STEPS, every):
        values = 10.0 ** rng.uniform(-4, 0, (len(weights), len(STATISTICS)))
        history.snapshots.append(Snapshot(step, 1e-3, 2e-3, 1.0 if learns else 1e-6, weights, values))
    return history


LEARNED = {
    "signal": "loss/train",
    "layer": None,
    "value": 0.4,
    "threshold": 1.3,
    "step": 20,
    "text": "loss below chance",
}
LEARNS, DEAD = (synthetic_history(learns=learns).to_bytes() for learns in (True, False))


def nested(overrides):
    """A config as a dict of dicts, from values by dotted key."""
    config = {}
    for key, value in overrides.items():
        group, _, name = key.rpartition(".")
        (config.setdefault(group, {}) if group else config)[name] = value
    return config


def write_run(folder, *, learns=True, accuracy=None, seed=0, overrides=None, measured=True, **changes):
    """Write the files of a finished run to `folder`; `changes` are fields of result.json."""
    folder.mkdir(parents=True)
    accuracy = (0.8 if learns else 0.25) if accuracy is None else accuracy
    evaluations = [{"step": step, "loss": 1.4 - accuracy, "accuracy": accuracy} for step in (50, 100)]
    result = {
        "status": "finished",
        "experiment": "quickstart",
        "seed": seed,
        "overrides": overrides or {},
        "config": {"seed": seed} | nested(overrides or {}),
        "data": {
            "fingerprint": "f",
            "train_texts": 1600,
            "test_texts": 400,
            "label_names": ["a", "b", "c", "d"],
            "majority_share": 0.25,
        },
        "steps": STEPS,
        "total_steps": STEPS,
        "metrics": {"final": evaluations[-1], "best": evaluations[-1]},
        "evaluations": evaluations,
        "verdict": "healthy" if learns else "collapsed",
        "verdict_step": 20,
        "findings": [LEARNED] if learns else [],
        "cause": None if learns else "a learning rate of 1 is too large",
        "advice": None if learns else "optimizer.lr=0.1",
        "seconds": 30.0,
    }
    (folder / "result.json").write_text(json.dumps(result | changes))
    if measured:
        (folder / HISTORY_FILE).write_bytes(LEARNS if learns else DEAD)
    return folder


def comparison(folder, seeds=2, **changes):
    """Write a sweep over two warm-ups; runs with the shorter one do not learn."""
    for warmup, learns in ((0.1, False), (0.7, True)):
        for seed in range(seeds):
            overrides = {"schedule.warmup_frac": warmup}
            run_dir = folder / f"warmup_frac={warmup}/seed={seed}"
            write_run(run_dir, learns=learns, seed=seed, overrides=overrides, **changes)
    return folder


def bert_snapshot(layers: int, *, lr: float = 1e-4) -> Snapshot:
    """Plausible statistics for every weight of a BERT with that many layers."""
    from bertmon import model

    small = ModelConfig(num_hidden_layers=layers, hidden_size=4, num_attention_heads=1, intermediate_size=4)
    weights = model.named_weights(model.build_model(small, label_names="ab", vocab_size=100, pad_id=0, max_length=8))
    rng = np.random.default_rng(0)
    mean = 10 ** (np.linspace(-9, -3, len(weights)) + rng.normal(0, 0.3, len(weights)))
    ratios, sizes = 10 ** rng.normal(-3, 1, len(weights)), np.full(len(weights), 0.02)
    values = np.stack([mean, 50 * mean, 2 * mean, rng.random(len(weights)), ratios, sizes], axis=1)
    kinds, depths = zip(*((weight.kind, weight.depth) for weight in weights.values()), strict=True)
    return Snapshot(30, lr, 3 * lr, 1e-3, WeightTable(tuple(weights), kinds, depths), values)


# --- composed configs -----------------------------------------------------------------------------


def compose_config(*overrides):
    """The config that Hydra composes from conf/ with these overrides, without Hydra's own keys."""
    from hydra import compose, initialize_config_module

    from bertmon.launch import hydra_setup

    hydra_setup.register()
    with initialize_config_module("bertmon.conf", version_base="1.3", job_name="run"):
        return compose("config", list(overrides))


# --- one run, up to its first step ----------------------------------------------------------------


class RecordingLog:
    """A MetricLog that records what is logged."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []
        self.points: dict[str, list[tuple[int, float]]] = {}  # by tag: step and value, in the order of writing
        self.texts: list[tuple[str, str, int]] = []  # tag, text, step

    def snapshot(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)

    def scalars(self, step, values) -> None:
        for tag, value in values.items():
            self.points.setdefault(tag, []).append((step, value))

    def text(self, tag: str, text: str, step: int) -> None:
        self.texts.append((tag, text, step))


class PreparedRun:
    """A run that is ready for its first step, on the CPU and without a folder.

    history: the history to continue. log: the RecordingLog to write to.
    """

    def __init__(self, settings: RunConfig, *, history: History | None = None, log: RecordingLog | None = None) -> None:
        import torch

        from bertmon.training.state import TrainState
        from bertmon.training.task import build_monitor, build_task

        self.config = settings
        self.task = build_task(settings, torch.device("cpu"))
        self.history = History(self.task.plan) if history is None else history
        self.log = RecordingLog() if log is None else log
        self.monitor = build_monitor(settings, self.task, self.history, self.log)
        self.state = TrainState()

    def fit(self, save_checkpoint: Callable[[], None] | None = None) -> "PreparedRun":
        """Train from the current state to the end. Returns the run."""
        from bertmon.training.trainer import Trainer

        trainer = Trainer(
            self.task,
            self.config,
            self.monitor,
            self.state,
            log_scalars=self.log.scalars,
            name="test",
            save_checkpoint=save_checkpoint,
        )
        trainer.fit()
        return self

    def weights(self):
        """All parameters, flat: [P]."""
        return flat_parameters(self.task.classifier)


def flat_parameters(module):
    """All parameters of a module, detached, in one tensor [P]."""
    import torch

    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def without_monitor(settings: RunConfig) -> RunConfig:
    """The same run with monitor=off."""
    return dataclasses.replace(settings, monitor=dataclasses.replace(settings.monitor, enabled=False))


def interrupt_run(settings: RunConfig, run_dir: Path, monkeypatch, at: int) -> None:
    """Train until a KeyboardInterrupt at the first evaluation from step `at` on, with checkpoints every 5 steps."""
    from bertmon.training import trainer
    from bertmon.training.run_training import run_training

    settings.train.checkpoint_every = 5
    evaluate = trainer.evaluate

    def interrupted(*arguments, step: int, **options):
        if step >= at:
            raise KeyboardInterrupt
        return evaluate(*arguments, step=step, **options)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_training(settings, run_dir, name="run")


# --- the command line in this process -------------------------------------------------------------


@pytest.fixture
def bertmon_here(tmp_path: Path, tmp_path_factory, monkeypatch: pytest.MonkeyPatch):
    """Run `bertmon ARGUMENT...` in tmp_path in this process, which saves the seconds of a start-up.

    Returns a CompletedProcess. Log handlers and signal handlers are restored afterwards.
    """
    from bertmon.cli import main

    root, numbers = logging.getLogger(), (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    handlers, signals = list(root.handlers), {number: signal.getsignal(number) for number in numbers}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))

    def run(*arguments: str) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["bertmon", *arguments])
        stdout, stderr, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                main()
            except SystemExit as end:
                code = end.code
        if isinstance(code, str):
            stderr.write(f"{code}\n")
            code = 1
        return subprocess.CompletedProcess(list(arguments), code or 0, stdout.getvalue(), stderr.getvalue())

    yield run
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    for number, handler in signals.items():
        signal.signal(number, handler)
