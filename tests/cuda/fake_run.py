"""Runs of bertmon on fake CUDA tensors: `python fake_run.py tiny|controls|article` prints what they did as JSON.

It runs in its own process because the C++ part must be loaded before torch.
"""

import contextlib
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"

import fake_cuda  # before torch
import torch
from environment import compose_config
from ledger import Ledger, allocated_bytes
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils._python_dispatch import _disable_current_modes
from transformers import PreTrainedTokenizerFast

from bertmon.config import RunConfig
from bertmon.monitor.monitor import Monitor
from bertmon.monitor.probe import LogitProbe
from bertmon.monitor.stats import WeightStatistics
from bertmon.result import RunResult
from bertmon.training import checkpoint, run_training, step, trainer
from bertmon.training.step import GuardedUpdate

torch.set_num_threads(1)

BATCH = 16
QUIET = ["monitor.every=1000", "train.log_every=1000", "train.eval_every=1000"]
"""Only the first step and the steps at the ends of epochs are monitored or logged."""
_PHASES = (
    (trainer, "forward_backward", "forward and backward"),
    (GuardedUpdate, "update", "clip and update"),
    (LogitProbe, "logit_std", "probe"),
    (WeightStatistics, "measure_gradients", "monitor"),
    (WeightStatistics, "keep_weights", "monitor"),
    (WeightStatistics, "measure_updates", "monitor"),
    (Monitor, "flush", "read"),
    (trainer, "evaluate", "evaluate"),
)
_ON_THE_HOST = (
    (run_training, "save_checkpoint"),
    (checkpoint.Checkpoint, "__init__"),
)
"""Functions that read and write real files."""


class Run:
    """One run on fake CUDA tensors."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.ledger = Ledger()
        self.tasks: list[Any] = []
        self.monitors: list[Monitor] = []
        with contextlib.suppress(KeyboardInterrupt), fake_cuda.fake_cuda(self.ledger), self._observed():
            run_training.run_training(config, folder, name="fake")
        result = RunResult.read(folder)
        assert result is not None
        self.result = result

    @contextlib.contextmanager
    def _observed(self) -> Iterator[None]:
        """Record steps, phases, tasks and monitors of the run."""
        replaced: dict[tuple[Any, str], Any] = {
            (owner, name): self._in_phase(getattr(owner, name), phase) for owner, name, phase in _PHASES
        }
        for owner, name in _ON_THE_HOST:
            replaced[owner, name] = self._in_phase(_without_modes(getattr(owner, name)), "files")
        replaced[run_training, "build_task"] = _keeping(run_training.build_task, self.tasks)
        replaced[run_training, "build_monitor"] = _keeping(run_training.build_monitor, self.monitors)
        replaced[trainer.Trainer, "_remaining_batches"] = self._counting(trainer.Trainer._remaining_batches)
        with contextlib.ExitStack() as stack:
            for (owner, name), value in replaced.items():
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, value)
            yield

    def _in_phase(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before, self.ledger.phase = self.ledger.phase, phase
            try:
                return function(*args, **kwargs)
            finally:
                self.ledger.phase = before

        return wrapped

    def _counting(self, batches: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def wrapped(fitting: trainer.Trainer) -> Iterator[Any]:
            iterator = batches(fitting)
            self.ledger.step = fitting.state.steps
            while True:
                self.ledger.phase = "batch"
                try:
                    item = next(iterator)
                except StopIteration:
                    return
                self.ledger.phase = "loop"
                yield item
                self.ledger.step += 1

        return wrapped

    def summary(self) -> dict[str, Any]:
        """The values that the tests check."""
        task, ledger = self.tasks[-1], self.ledger
        states = task.optimizer.state.values()
        moments = [value for state in states for name, value in state.items() if name != "step"]
        buffer = self.monitors[-1]._statistics._buffer.flat
        return {
            "status": self.result.status,
            "device": self.result.device,
            "steps": self.result.steps,
            "parameters": self.result.parameters,
            "steps_per_epoch": task.steps_per_epoch,
            "waits": ledger.waits,
            "kernels": {f"{number} {phase}": count for (number, phase), count in ledger.kernels.items()},
            "peaks": ledger.peaks,
            "bytes": {
                "parameters": _bytes(task.classifier.parameters()),
                "moments": _bytes(moments),
                "monitor": _bytes([buffer]) if buffer.is_cuda else 0,
            },
            "largest_batch": list(max((batch.input_ids.shape for batch in self._batches()), key=tuple)),
            "state_devices": sorted({str(value.device) for state in states for value in state.values()}),
            "fused": all(group["fused"] for group in task.optimizer.param_groups),
            "attention": dict(fake_cuda.attention_kernels),
        }

    def _batches(self) -> list[Any]:
        with fake_cuda.fake_cuda(Ledger()):
            return list(self.tasks[-1].train.epoch_batches(0, 0))


def _bytes(tensors: Any) -> int:
    return sum({tensor.untyped_storage()._cdata: allocated_bytes(tensor) for tensor in tensors}.values())


def _without_modes(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return function(*args, **kwargs)

    return wrapped


def _keeping(function: Callable[..., Any], results: list[Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        results.append(function(*args, **kwargs))
        return results[-1]

    return wrapped


# --- configs --------------------------------------------------------------------------------------


def write_texts(path: Path, count: int, words: int) -> Path:
    """Write a .csv of `count` texts of four classes, with lengths from half of `words` to `words`."""
    rows = [f"{' '.join(f'w{(row * 7 + word) % 900}' for word in range(words - row % (words // 2)))},{row % 4}"
            for row in range(count)]  # fmt: skip
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


def write_tokenizer(folder: Path, size: int) -> Path:
    """Save a tokenizer of `size` words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *(f"w{number}" for number in range(size - len(special)))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {f"{word[1:-1].lower()}_token": word for word in special}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


def config_of(folder: Path, *overrides: str, steps: int, words: int) -> RunConfig:
    """A run of two epochs of `steps` steps, each with a smaller last batch; its texts have up to `words` words."""
    data = folder / "data"
    data.mkdir(exist_ok=True)
    train = write_texts(data / "train.csv", BATCH * (steps - 1) + 5, words)
    test = write_texts(data / "test.csv", 70, words)
    return compose_config(
        [
            *overrides,
            "data=files",
            f"data.train={train}",
            f"data.test={test}",
            f"data.max_length={words}",
            f"train.batch_size={BATCH}",
            "train.epochs=2",
            "monitor.figures=false",
            "device=cuda",
            f"cache_dir={folder / 'cache'}",
        ]
    )


def tiny_config(folder: Path, *overrides: str) -> RunConfig:
    """Two layers, in bfloat16 and with dropout, as the article's run has them."""
    shape = ["num_hidden_layers=2", "hidden_size=64", "num_attention_heads=4", "intermediate_size=128"]
    dropout = ["hidden_dropout_prob=0.1", "attention_probs_dropout_prob=0.1"]
    small = [f"model.{setting}" for setting in (*shape, *dropout)]
    return config_of(
        folder,
        "experiment=quickstart",
        "model=bert_small",
        *small,
        "train.precision=bf16",
        *overrides,
        steps=5,
        words=32,
    )


def article_config(folder: Path, *overrides: str) -> RunConfig:
    """experiment=article: BERT-base, 16 texts of at most 256 tokens; a vocabulary as large as bert-base-uncased."""
    tokenizer = write_tokenizer(folder / "tokenizer", 30_522)
    return config_of(
        folder,
        "experiment=article",
        f"model.tokenizer={tokenizer}",
        "train.precision=bf16",
        *overrides,
        steps=3,
        words=256,
    )


# --- scenarios ------------------------------------------------------------------------------------


def tiny(folder: Path) -> dict[str, Any]:
    """Quiet runs, also with accumulation, class weights and layer-wise rates; an interrupted and a resumed run."""
    answers = {"quiet": Run(tiny_config(folder, *QUIET), _new(folder, "quiet")).summary()}
    fp32 = tiny_config(folder, *QUIET, "train.precision=fp32")
    answers["quiet fp32"] = Run(fp32, _new(folder, "fp32")).summary()
    options = ["train.accumulate=2", "train.class_weights=balanced", "optimizer.layer_decay=0.9"]
    answers["options"] = Run(tiny_config(folder, *QUIET, *options), _new(folder, "options")).summary()
    config = tiny_config(folder, "monitor.every=1", "train.checkpoint_every=3", "train.eval_every=1000")
    run_dir = _new(folder, "monitored")
    original, calls = trainer.evaluate, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    trainer.evaluate = interrupted
    answers["interrupted"] = Run(config, run_dir).summary()
    trainer.evaluate = original
    assert len(calls) == 3
    config.resume = str(run_dir)
    fake_cuda.restored_random_states.clear()
    answers["resumed"] = Run(config, run_dir).summary()
    answers["resumed"]["restored"] = fake_cuda.restored_random_states
    return answers


def article(folder: Path) -> dict[str, Any]:
    """The article's run, once monitored at every step and once quiet."""
    monitored = Run(
        article_config(folder, "monitor.every=1", "train.eval_every=1000"), _new(folder, "monitored")
    ).summary()
    return {"monitored": monitored, "quiet": Run(article_config(folder, *QUIET), _new(folder, "quiet")).summary()}


def controls(folder: Path) -> dict[str, Any]:
    """Planted faults, each in a quiet run: the waits in one of its quiet steps, or the error."""
    return {name: _planted(folder, name, *fault) for name, fault in _FAULTS.items()}


def _planted(folder: Path, name: str, owner: Any, attribute: str, fault: Callable[..., Any]) -> dict[str, Any]:
    original = getattr(owner, attribute)
    setattr(owner, attribute, lambda *args: fault(original, *args))
    try:
        summary = Run(tiny_config(folder, *QUIET), _new(folder, name)).summary()
    except (RuntimeError, AssertionError) as error:
        return {"error": str(error)}
    finally:
        setattr(owner, attribute, original)
    counted: Counter[str] = Counter()
    counted.update(wait["what"] for wait in summary["waits"] if wait["step"] == 2)
    return {"waits": counted, "peaks": summary["peaks"]}


def _leak(original: Callable[..., Any], self: Any, loss: torch.Tensor, lr: float) -> Any:
    _LEAKED.append(torch.zeros(1_000_000, device=loss.device))
    return original(self, loss, lr)


def _labels(batches: Any) -> torch.Tensor:
    labels: torch.Tensor = batches[0].labels
    return labels


_LEAKED: list[torch.Tensor] = []
_FAULTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "nothing": (GuardedUpdate, "update", lambda f, self, loss, lr: f(self, loss, lr)),
    "item": (GuardedUpdate, "update", lambda f, self, loss, lr: (loss.item(), f(self, loss, lr))[1]),
    "if": (GuardedUpdate, "update", lambda f, self, loss, lr: f(self, loss, lr) if loss > 0 else None),
    "list": (
        GuardedUpdate,
        "update",
        lambda f, self, loss, lr: (torch.tensor([1.0]).to(loss.device), f(self, loss, lr))[1],
    ),
    "mask index": (
        trainer,
        "forward_backward",
        lambda f, model, batches, *rest: (_labels(batches)[_labels(batches) > 0], f(model, batches, *rest))[1],
    ),
    "transformers' mask": (step, "_attention_mask", lambda f, model, batch, dtype: batch.attention_mask),
    "mask in float32": (step, "_attention_mask", lambda f, model, batch, dtype: f(model, batch, torch.float32)),
    "mask on the CPU": (
        step,
        "_attention_mask",
        lambda f, model, batch, dtype: torch.zeros(len(batch.labels), 1, 32, 32, dtype=dtype),
    ),
    "tensor on the CPU": (step, "compute_logits", lambda f, *given: f(*given) + torch.zeros(4)),
    "index on CUDA": (
        trainer,
        "forward_backward",
        lambda f, model, batches, *rest: (torch.zeros(9)[_labels(batches)], f(model, batches, *rest))[1],
    ),
    "leak": (GuardedUpdate, "update", _leak),
}


def _new(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir()
    return path


if __name__ == "__main__":
    scenarios = {"tiny": tiny, "article": article, "controls": controls}
    with tempfile.TemporaryDirectory() as home:
        print("\n" + json.dumps(scenarios[sys.argv[1]](Path(home).resolve())))
