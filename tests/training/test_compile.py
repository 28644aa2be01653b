"""torch.compile: one graph per shape, a limit that is reported, memory that is freed, and a check for a compiler."""

import functools
import importlib.util
import logging
import shutil
import weakref

import pytest
import torch
from torch._dynamo.utils import counters

from bertmon.config import Precision
from bertmon.errors import InputError
from bertmon.training import step
from bertmon.training.run_training import run_training
from bertmon.training.task import build_task


@pytest.fixture(autouse=True)
def _eager_backend(monkeypatch):
    """Dynamo traces and counts graphs but runs them eagerly, so that no C++ compiler is needed."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(step, "require_compiler", lambda device_type: None)
    yield
    torch._dynamo.reset()


def first_epoch(settings) -> tuple[torch.nn.Module, list[torch.Size]]:
    """The classifier after the passes of an epoch through its compiled form, and the shapes of their batches."""
    task = build_task(settings, torch.device("cpu"))
    compiled = step.maybe_compile(task.classifier, True)
    shapes = []
    for batch in task.train.epoch_batches(0, 0):
        step.forward_backward(compiled, [batch], Precision.fp32)
        shapes.append(batch.input_ids.shape)
    return task.classifier, shapes


def test_shape_has_one_graph_with_and_without_padding(settings, tmp_path):
    rows = [f"{'boat ' * length}sea,{'sea' if length % 2 else 'sky'}" for length in (9, 60, 61, 62)]
    mixed = tmp_path / "mixed.csv"
    mixed.write_text("\n".join(["text,label", *rows]))
    settings.data.train = str(mixed)
    settings.train.batch_size = 1
    settings.data.bucket_lengths = [32]
    task = build_task(settings, torch.device("cpu"))
    masks = [step._attention_mask(task.classifier, batch, torch.float32) for batch in task.train.epoch_batches(0, 0)]
    assert [mask is None for mask in masks].count(True) == 3  # the control: without the rule there would be two graphs
    counters.clear()
    first_epoch(settings)
    assert counters["stats"]["unique_graphs"] == 1


def test_more_shapes_than_graphs_are_one_clear_error(settings, monkeypatch, tmp_path):
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    monkeypatch.setattr(step, "MAX_GRAPHS", 1)
    settings.train.compile = True
    with pytest.raises(InputError, match=r"^data\.bucket_lengths: expected .* at most 1 shapes, got more\.$"):
        run_training(settings, tmp_path / "run", name="run")


def test_limit_applies_to_each_run_and_not_to_the_process(settings, monkeypatch):
    monkeypatch.setattr(step, "MAX_GRAPHS", 2)
    for layers in (1, 2, 3):  # each has graphs of its own
        settings.model.num_hidden_layers = layers
        _, shapes = first_epoch(settings)
        assert len(set(shapes)) == 2


def test_compiled_model_is_freed_by_the_next_compilation(settings):
    first = weakref.ref(first_epoch(settings)[0])
    assert first() is not None  # the control: it is part of a cycle
    step.maybe_compile(torch.nn.Linear(1, 1), True)
    assert first() is None


@pytest.mark.parametrize(
    ("device", "missing", "message"),
    [
        ("cpu", "g++", "C\\+\\+ compiler"),
        ("cuda", "triton", "package triton"),
        ("cuda", "gcc", "C compiler"),
        ("cuda", None, None),
        ("cpu", None, None),
        ("mps", "gcc", None),
    ],
)
def test_missing_compiler_of_a_device_is_reported(device, missing, message, monkeypatch):
    monkeypatch.undo()  # the fixture's
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    no_compiler = missing in ("gcc", "g++")
    monkeypatch.setattr(shutil, "which", lambda name: None if no_compiler else f"/usr/bin/{name}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if missing == name else object())
    if message is None:
        step.require_compiler(device)
    else:
        with pytest.raises(InputError, match=rf"^train\.compile: expected .*{message}"):
            step.require_compiler(device)
