"""The parts of cuda_validation.py: `python cuda_parts.py PART WORK SECONDS [--rehearse] [OVERRIDE...]` prints JSON.

"ok" is whether the outcome is as expected, null if nothing was checked. The rest are measurements.
"""

import json
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monitor_overhead
import numpy as np
import torch
import vs_trainer
from environment import CUDA, DEVICE, compose_config

from bertmon.config import Precision, RunConfig
from bertmon.data.batches import Batch
from bertmon.monitor.history import HISTORY_FILE, History
from bertmon.monitor.monitor import NullLog
from bertmon.result import RunResult, Status
from bertmon.training.run_training import run_training
from bertmon.training.state import TrainState
from bertmon.training.step import GuardedUpdate
from bertmon.training.task import build_monitor, build_task
from bertmon.training.trainer import Trainer

CPU = torch.device("cpu")
PREDICTED_BYTES = 3_581_600_000
"""Peak memory of the article's run in bfloat16 according to tests/cuda/test_fake_cuda.py, without kernel workspaces."""
_SMALL = ["num_hidden_layers=2", "hidden_size=32", "num_attention_heads=2", "intermediate_size=64", "tokenizer=null"]
_NO_DROPOUT = ["model.hidden_dropout_prob=0.0", "model.attention_probs_dropout_prob=0.0"]
_STABLE = [*_NO_DROPOUT, "optimizer.lr=1e-4", "optimizer.bias_correction=true"]
"""Settings whose steps do not amplify rounding differences."""
LIMITS = {Precision.fp32: (1e-5, 1e-4), Precision.bf16: (2e-3, 5e-2)}
"""Relative differences of losses and gradient norms that rounding can cause in 20 stable steps. On a CPU, weights that
differ by 1e-7 cause 2e-7 and 3e-6 in float32, 9e-5 and 7e-3 in bfloat16."""
_QUIET = ["monitor.every=100000", "train.log_every=100000"]

Outcome = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """The arguments of every part."""

    work: Path
    seconds: float  # time left for the part
    rehearse: bool
    overrides: Sequence[str]  # paths of data and tokenizer

    def article(self, *overrides: str) -> list[str]:
        """Overrides of the article's run in bfloat16; in a rehearsal, two small layers on made-up texts."""
        common = ["experiment=article", "train.precision=bf16", "monitor.figures=false", f"device={DEVICE.type}"]
        common.append("train.eval_every=1000000")  # at the end of each epoch only
        return [*common, *(self._tiny(96) if self.rehearse else self.overrides), *overrides]

    def twenty_steps(self, *overrides: str) -> list[str]:
        """Overrides of 20 steps of bert_small on 16 made-up texts each."""
        shape = [f"model.{setting}" for setting in _SMALL] if self.rehearse else []
        chosen = ["experiment=quickstart", "model=bert_small", *shape, *self._texts(320)]
        return [*chosen, "train.epochs=1", "train.eval_every=1000000", "monitor=off", *overrides]

    def docstrings(self) -> list[str]:
        """Overrides of the benchmarks that train BERT-base on docstrings; in a rehearsal, a tiny BERT on a few."""
        if self.rehearse:
            few = ["data.packages=[tqdm,filelock]", "data.train_per_package=8", "data.test_per_package=2"]
            return [*few, "data.max_length=32", "train.precision=fp32", *(f"model.{setting}" for setting in _SMALL)]
        return [override for override in self.overrides if not override.startswith("data.")]

    def _tiny(self, texts: int) -> list[str]:
        shape = [f"model.{setting}" for setting in (*_SMALL, "vocab_size=200")]
        return ["model=bert_small", *shape, *self._texts(texts), "train.epochs=2"]

    def _texts(self, count: int) -> list[str]:
        """Overrides that select made-up texts of two classes, with different lengths and partly different words."""
        paths = {"train": self.work / f"train_{count}.csv", "test": self.work / "test_40.csv"}
        for (part, path), rows in zip(paths.items(), (count, 40), strict=True):
            rng = np.random.default_rng(len(part))
            lines = ["text,label"]
            for row in range(rows):
                first = row % 2 * 20
                words = rng.integers(first, first + 60, 5 + row % 50)
                lines.append(f"{' '.join(f'w{word}' for word in words)},{row % 2}")
            path.write_text("\n".join(lines) + "\n")
        return ["data=files", f"data.train={paths['train']}", f"data.test={paths['test']}", "data.max_length=64"]


# --- training -------------------------------------------------------------------------------------


def fit(config: RunConfig, device: torch.device = DEVICE, trainer: type[Trainer] = Trainer) -> tuple[History, Trainer]:
    """Train like a run, but without a folder; returns the history and the trainer."""
    task = build_task(config, device)
    history = History(task.plan)
    fitted = trainer(
        task,
        config,
        build_monitor(config, task, history, NullLog()),
        TrainState(),
        log_scalars=lambda step, values: None,
        name="",
    )
    fitted.fit()
    return history, fitted


class SyncChecked(Trainer):
    """Raises an error on any wait for the device, except to read a step and in the first two steps, which allocate."""

    def _train_step(self, step: int, batches: Sequence[Batch]) -> None:
        if step > 1:
            set_sync_debug("error")
        super()._train_step(step, batches)

    def _must_pause(self, step: int) -> bool:
        pauses = super()._must_pause(step)
        if pauses:
            set_sync_debug("default")
        return pauses


def set_sync_debug(mode: str) -> None:
    """torch.cuda.set_sync_debug_mode without its warning that it is a prototype."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)


def check_waits(config: RunConfig) -> str | None:
    """Train with SyncChecked; returns the error of a wait that is not for reading, or None."""
    try:
        fit(config, trainer=SyncChecked)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        set_sync_debug("default")
    return None


class Timed(Trainer):
    """Measures seconds per step in the last epoch, without its first steps, its smaller last batch, and evaluations."""

    seconds_per_step = float("nan")

    def _train_step(self, step: int, batches: Sequence[Batch]) -> None:
        last = self._total_steps - 2
        first = min(self._total_steps - self._task.steps_per_epoch + 10, last)
        if step == first:
            self._begin = _now()
        super()._train_step(step, batches)
        if step == last:
            self.seconds_per_step = (_now() - self._begin) / (last - first + 1)


def _now() -> float:
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def replaced(owner: Any, name: str, value: Callable[..., Any]) -> Iterator[None]:
    """Replace `owner.name` with `value` within the context."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


# --- parts ----------------------------------------------------------------------------------------


def environment(setup: Setup) -> Outcome:
    names = ("torch", "transformers", "tokenizers", "numpy", "hydra", "safetensors")
    outcome: Outcome = {"ok": True} | {name: __import__(name).__version__ for name in names}
    outcome["python"] = sys.version.split()[0]
    if not CUDA:
        return outcome | {"device": "cpu"}
    return outcome | {
        "device": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
        "TF32 before bertmon sets it": torch.backends.cuda.matmul.allow_tf32,
        "cuDNN's attention before bertmon switches it off": torch.backends.cuda.cudnn_sdp_enabled(),
    }


def twins(setup: Setup) -> Outcome:
    """Largest relative difference of losses and gradient norms over 20 steps without dropout."""
    outcome: Outcome = {"ok": True}
    for precision, limits in LIMITS.items():
        config = compose_config(setup.twenty_steps(*_STABLE, f"train.precision={precision}"))
        (cpu_history, on_cpu), (device_history, on_device) = fit(config, CPU), fit(config)
        differences = {
            "losses": _relative(cpu_history.losses, device_history.losses),
            "gradient norms": _relative(cpu_history.grad_norms, device_history.grad_norms),
            "loss/test": _relative(*([fitted.state.evaluations[-1].loss] for fitted in (on_cpu, on_device))),
        }
        outcome |= {f"{precision}, {name}": difference for name, difference in differences.items()}
        close = differences["losses"] < limits[0] and differences["gradient norms"] < limits[1]
        outcome["ok"] &= len(device_history.losses) == 20 and close
    return outcome


def _relative(values: Sequence[float], others: Sequence[float]) -> float:
    """The largest relative difference over the common steps."""
    common = min(len(values), len(others))
    return float(np.abs(np.array(values[:common]) / np.array(others[:common]) - 1).max())


def waits(setup: Setup) -> Outcome:
    """Waits with and without dropout, which use different attention kernels; a planted wait must be detected."""
    if not CUDA:
        return {"ok": None, "skipped": "needs CUDA"}
    outcome: Outcome = {}
    for precision in Precision:
        for name, own in ((str(precision), []), (f"{precision}, no dropout", _NO_DROPOUT)):
            overrides = ["train.epochs=1", "monitor.every=10", f"train.precision={precision}", *own]
            config = compose_config(setup.article(*overrides))
            outcome[name] = check_waits(config) or "none"
    results = list(outcome.values())
    update = GuardedUpdate.update
    with replaced(GuardedUpdate, "update", lambda self, loss, lr: (loss.item(), update(self, loss, lr))[1]):
        outcome["planted"] = check_waits(config) or "none"
    return {"ok": results == ["none"] * len(results) and outcome["planted"] != "none", **outcome}


def resume(setup: Setup) -> Outcome:
    """Compare the history and evaluations of an interrupted and resumed run with those of an uninterrupted one."""
    outcome: Outcome = {"ok": True}
    for precision in (Precision.fp32, Precision.bf16):
        every = 4 if setup.rehearse else 50
        overrides = [
            "train.deterministic=true",
            "train.epochs=1",
            "monitor.every=10",
            f"train.checkpoint_every={every}",
        ]
        config = compose_config(setup.article(*overrides, f"train.precision={precision}"))
        whole, resumed = (_new_folder(setup.work, f"resume_{precision}_{name}") for name in ("whole", "resumed"))
        results = [run_training(config, whole, name="whole")]
        with suppress(KeyboardInterrupt), _interrupted_at(every + 1):
            run_training(config, resumed, name="resumed")
        config.resume = str(resumed)
        torch.manual_seed(12345)  # the current random state must not matter
        results.append(run_training(config, resumed, name="resumed"))
        same = (whole / HISTORY_FILE).read_bytes() == (resumed / HISTORY_FILE).read_bytes()
        same &= results[0].evaluations == results[1].evaluations
        outcome[f"{precision}: bit for bit"] = same
        outcome["ok"] &= same
    return outcome


@contextmanager
def _interrupted_at(step: int) -> Iterator[None]:
    train_step = Trainer._train_step

    def interrupted(self: Trainer, number: int, batches: Sequence[Batch]) -> None:
        if number == step:
            raise KeyboardInterrupt
        train_step(self, number, batches)

    with replaced(Trainer, "_train_step", interrupted):
        yield


def out_of_memory(setup: Setup) -> Outcome:
    """Two runs with all texts in one batch, which fits on no GPU, then two with batches of 16, in one process."""
    folder = _new_folder(setup.work, "out_of_memory")
    sweep = setup.article(
        "train.batch_size=4096,16", "seed=0,1", "train.epochs=1", f"hydra.sweep.dir={folder / 'sweep'}"
    )
    process = _bertmon("-m", *sweep, seconds=setup.seconds)
    results = [RunResult.read(path.parent) for path in sorted(folder.rglob("result.json"))]
    runs = [(result.config or {}, result) for result in results if result]
    by_size: dict[int, list[RunResult]] = {4096: [], 16: []}
    for config, result in runs:
        by_size[config["train"]["batch_size"]].append(result)
    finished = [result.status is Status.finished for result in by_size[16]]
    errors = [str(result.error).split(":")[0] for result in by_size[4096]]
    expected_errors = ["OutOfMemoryError"] * 2
    ok = finished == [True, True] and (errors == expected_errors or setup.rehearse)
    return {"ok": ok, "of 4096": errors, "of 16 finished": finished, "exit code": process.returncode}


def monitoring(setup: Setup) -> Outcome:
    """Complete runs, from the first step to the last written byte, compared with the same runs without monitoring."""
    turns = 1 if setup.rehearse else 5
    variants = {name: own for name, own in monitor_overhead.VARIANTS.items() if name != "every 30 steps, no figures"}
    if CUDA:
        monitor_overhead.train_seconds([*setup.docstrings(), *variants["off"]])  # loads the kernels for all
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(turns):
        for name, own in variants.items():
            seconds[name].append(monitor_overhead.train_seconds([*setup.docstrings(), *own]))
    ratios = {
        name: [round(one / off, 4) for one, off in zip(times, seconds["off"], strict=True)]
        for name, times in seconds.items()
    }
    goals = {"every 30 steps, figures": 1.02, "every step, no figures": 1.05}
    met = all(float(np.median(ratios[name])) <= goal for name, goal in goals.items())
    return {"ok": None if setup.rehearse else met, "seconds": seconds, "of off": ratios}


def floor(setup: Setup) -> Outcome:
    """Milliseconds per step of the article's run without monitoring, and their theoretical minimum."""
    rates = {precision: matrix_rate(precision, setup.rehearse) for precision in Precision}
    bandwidth = copy_bandwidth(setup.rehearse)
    outcome: Outcome = {
        "FLOP/s": {str(precision): f"{rate:.3g}" for precision, rate in rates.items()},
        "bytes/s": f"{bandwidth:.3g}",
    }
    for precision in Precision:
        config = compose_config(setup.article(*_QUIET, "monitor=off", "train.epochs=1", f"train.precision={precision}"))
        _, fitted = fit(config, trainer=Timed)
        assert isinstance(fitted, Timed)
        task = fitted._task
        lengths = torch.as_tensor(vs_trainer.tokenize_training_texts(config, task)[1].lengths)
        flops = vs_trainer.epoch_flops(task.classifier, lengths) / len(task.train)
        parameters = sum(parameter.numel() for parameter in task.classifier.parameters())
        least = flops / rates[precision] + update_bytes(parameters) / bandwidth
        outcome[str(precision)] = {
            "ms a step": round(1000 * fitted.seconds_per_step, 3),
            "floor in ms": round(1000 * least, 3),
            "of the floor's rate": round(least / fitted.seconds_per_step, 3),
            "of the matrix rate": round(flops / rates[precision] / fitted.seconds_per_step, 3),
        }
    met = outcome["bf16"]["of the matrix rate"] >= 0.5
    return {"ok": None if setup.rehearse else met, **outcome}


def update_bytes(parameters: int) -> int:
    """Bytes that an update must read and write in float32: the norm reads gradients, clipping reads and writes them,
    AdamW reads weights, gradients and moments and writes all of them except gradients."""
    return 4 * parameters * (1 + 2 + 4 + 3)


def matrix_rate(precision: Precision, rehearse: bool) -> float:
    """FLOPs per second of a large matrix product, the best of ten."""
    size = 256 if rehearse else 8192
    torch.set_float32_matmul_precision("high" if precision is Precision.tf32 else "highest")
    dtype = torch.bfloat16 if precision is Precision.bf16 else torch.float32
    matrix = torch.randn(size, size, dtype=dtype, device=DEVICE)
    return 2 * size**3 / _best_seconds(lambda: matrix @ matrix)


def copy_bandwidth(rehearse: bool) -> float:
    """Bytes per second that a large copy on the device reads and writes, the best of ten."""
    source = torch.zeros(1_000_000 if rehearse else 500_000_000, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best_seconds(lambda: target.copy_(source))


def _best_seconds(function: Callable[[], object]) -> float:
    times = []
    for _ in range(13):
        begin = _now()
        function()
        times.append(_now() - begin)
    return min(times[3:])


def trainer(setup: Setup) -> Outcome:
    """One turn of benchmarks/vs_trainer.py's variants, each in its own process; earlier measurements are reused."""
    variants = [name for name in vs_trainer.VARIANTS if "article" not in name]
    if setup.rehearse:
        variants = [name for name in variants if "compile" not in name]
    measured = setup.work / "trainer_rates.json"
    rates = json.loads(measured.read_text()) if measured.exists() else {}
    for name in variants:
        if name not in rates:
            measure = vs_trainer.measure if setup.rehearse else vs_trainer.measure_in_process
            epoch = measure(name, setup.docstrings())
            rates[name] = {"tokens/s": round(epoch.rate), "of its floor": round(epoch.floor / epoch.seconds, 3)}
            measured.write_text(json.dumps(rates))
    own = max(rate["tokens/s"] for name, rate in rates.items() if name.startswith("bertmon"))
    ratios = {name: round(own / rate["tokens/s"], 2) for name, rate in rates.items() if "Trainer" in name}
    goals = [ratio >= (1.3 if "bf16" in name else 4) for name, ratio in ratios.items()]
    return {"ok": None if setup.rehearse or not CUDA else all(goals), **rates, "bertmon's best over": ratios}


def compile(setup: Setup) -> Outcome:  # noqa: A001  # the part's name
    """Losses of 20 steps without dropout, compiled and eager; then the time of the article's steps, compiled."""
    if not CUDA:
        return {"ok": None, "skipped": "needs CUDA"}
    outcome: Outcome = {"ok": True}
    for precision, limits in LIMITS.items():
        overrides = setup.twenty_steps(*_STABLE, f"train.precision={precision}")
        eager, _ = fit(compose_config(overrides))
        compiled, fitted = fit(compose_config([*overrides, "train.compile=true"]))
        outcome[f"{precision}, losses"] = _relative(eager.losses, compiled.losses)
        outcome[f"{precision}, seconds of compiling"] = round(fitted.state.compile_seconds, 1)
        outcome["ok"] &= outcome[f"{precision}, losses"] < limits[0]
    torch._dynamo.utils.counters.clear()  # resetting the compiler does not clear them
    config = compose_config(setup.article(*_QUIET, "monitor=off", "train.epochs=2", "train.compile=true"))
    _, fitted = fit(config, trainer=Timed)
    assert isinstance(fitted, Timed)
    outcome["article, ms a step"] = round(1000 * fitted.seconds_per_step, 3)
    outcome["article, seconds of compiling"] = round(fitted.state.compile_seconds, 1)
    outcome["graphs"] = int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    return outcome


def memory(setup: Setup) -> Outcome:
    """Peak bytes allocated by torch in an epoch with every step monitored."""
    if not CUDA:
        return {"ok": None, "skipped": "needs CUDA"}
    torch.cuda.reset_peak_memory_stats()
    fit(compose_config(setup.article("train.epochs=1", "monitor.every=1")))
    peak = torch.cuda.max_memory_allocated()
    share = peak / PREDICTED_BYTES
    return {
        "ok": 0.95 < share < 1.15,
        "bytes": peak,
        "reserved": torch.cuda.max_memory_reserved(),
        "of predicted": share,
    }


def article(setup: Setup, seeds: Sequence[int] = (0,)) -> Outcome:
    """Command-line runs with both warm-ups; runs that have ended are not repeated."""
    outcome: Outcome = {"ok": True}
    begin = time.monotonic()
    longest = 0.0
    for seed in seeds:
        for warmup in (0.1, 0.7):
            if seed and time.monotonic() - begin + 1.5 * longest > setup.seconds:
                return outcome
            result, seconds = _article_run(setup, seed, warmup)
            longest = max(longest, seconds)
            outcome[f"seed {seed}, warm-up {warmup}"] = _summary(result) | {"from process start": round(seconds, 1)}
            outcome["ok"] &= result is not None and result.ended and (seconds < 30 or not CUDA)
    return outcome


def seeds(setup: Setup) -> Outcome:
    return article(setup, range(1, 2 if setup.rehearse else 100))


def _article_run(setup: Setup, seed: int, warmup: float) -> tuple[RunResult | None, float]:
    """The run's result, and the seconds of its process."""
    folder = setup.work / "article" / f"warmup_{warmup}_seed_{seed}"
    ended = next((path.parent for path in folder.rglob("result.json") if RunResult.read_ended(path.parent)), None)
    if ended is None:
        _new_folder(folder.parent, folder.name)
        run = setup.article(f"seed={seed}", f"schedule.warmup_frac={warmup}", f"hydra.sweep.dir={folder / 'sweep'}")
        begin = time.perf_counter()
        _bertmon("-m", *run, seconds=setup.seconds)
        (folder / "seconds").write_text(str(time.perf_counter() - begin))
        ended = next((path.parent for path in folder.rglob("result.json")), folder)
    result, seconds = RunResult.read(ended), folder / "seconds"
    if seconds.exists():
        return result, float(seconds.read_text())
    return result, (result.seconds or 0.0) if result else 0.0  # its part was interrupted: without Python's startup


def _summary(result: RunResult | None) -> Outcome:
    if result is None:
        return {"status": "no result"}
    diagnosis, final = result.diagnosis, result.final
    return {
        "status": str(result.status),
        "verdict": str(diagnosis.verdict) if diagnosis else None,
        "since step": diagnosis.since_step if diagnosis else None,
        "accuracy/test": final.accuracy if final else None,
        "timings": {name: round(seconds, 1) for name, seconds in result.timings.items()},
    }


def _bertmon(*arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bertmon.run", *arguments]
    return subprocess.run(command, stdout=sys.stderr, text=True, check=False, timeout=seconds)


def _new_folder(parent: Path, name: str) -> Path:
    """An empty folder; files of an interrupted part are removed."""
    folder = parent / name
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


PARTS: dict[str, Callable[[Setup], Outcome]] = {
    function.__name__: function
    for function in (
        environment,
        twins,
        waits,
        memory,
        article,
        resume,
        out_of_memory,
        floor,
        monitoring,
        trainer,
        compile,
        seeds,
    )
}


def main(words: Sequence[str]) -> None:
    """See the module's docstring."""
    name, work, seconds, *rest = words
    overrides = [word for word in rest if word != "--rehearse"]
    setup = Setup(Path(work).resolve(), float(seconds), "--rehearse" in rest, overrides)
    outcome = PARTS[name](setup)
    print(json.dumps(outcome, default=str))


if __name__ == "__main__":
    main(sys.argv[1:])
