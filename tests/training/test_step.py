"""One step: its gradients, its precision, its guard against non-finite values, and the waits of the host."""

import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import PreparedRun, without_monitor
from torch._dynamo.utils import counters
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bertmon.config import Device, ModelConfig, Precision
from bertmon.data.batches import Batch
from bertmon.errors import InputError
from bertmon.model import build_model
from bertmon.training import step
from bertmon.training.task import build_task

TASK = {"label_names": ("no", "yes"), "vocab_size": 120, "pad_id": 0, "max_length": 32}
TINY_SHAPE = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 40}


@pytest.fixture
def task(settings):
    return build_task(settings, torch.device("cpu"))


@pytest.fixture
def batch(task):
    return next(task.train.epoch_batches(0, 0))


# --- gradients -----------------------------------------------------------------------------------


def test_forward_backward_gradients_equal_those_of_the_plain_loss(task, batch):
    task.classifier.eval()  # no dropout, so that both see the same network
    loss, logits = step.forward_backward(task.classifier, [batch], Precision.fp32)
    gradients = [parameter.grad.clone() for parameter in task.classifier.parameters()]

    task.classifier.zero_grad()
    log_likelihood = 0
    for row, label in enumerate(batch.labels):
        length = int(batch.attention_mask[row].sum())
        alone = task.classifier(input_ids=batch.input_ids[row : row + 1, :length]).logits[0]
        log_likelihood = log_likelihood + alone.log_softmax(dim=0)[label]
    (-log_likelihood / len(batch.labels)).backward()
    assert loss.item() == pytest.approx(-log_likelihood.item() / len(batch.labels), rel=1e-5)
    assert not loss.requires_grad
    assert not logits.requires_grad
    for gradient, parameter in zip(gradients, task.classifier.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", [*step._ACCEPTS_4D_MASK, "deberta-v2"])
@pytest.mark.parametrize("padded", [True, False])
def test_attention_mask_of_each_family_equals_the_one_that_the_model_makes(family, padded):
    torch.manual_seed(0)
    model = build_model(ModelConfig(**TINY_SHAPE, model_type=family), **TASK).eval()
    lengths = np.array([8, 5 if padded else 8])
    mask = (torch.arange(8) < torch.from_numpy(lengths)[:, None]).int()
    ids = torch.randint(5, 120, (2, 8), dtype=torch.int32) * mask
    batch = Batch(ids, mask, torch.tensor([0, 1]), 2, lengths)
    expected = model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(step.compute_logits(model, batch, Precision.fp32), expected)


def test_bf16_logits_are_close_to_fp32_and_returned_in_float32(task, batch):
    task.classifier.eval()
    exact = step.compute_logits(task.classifier, batch, Precision.fp32)
    rounded = step.compute_logits(task.classifier, batch, Precision.bf16)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, rtol=0.05, atol=0.05)
    step.forward_backward(task.classifier, [batch], Precision.bf16)
    assert all(parameter.grad.dtype == torch.float32 for parameter in task.classifier.parameters())


def test_guarded_update_changes_nothing_after_a_non_finite_loss():
    layer = torch.nn.Linear(2, 2)
    adamw = torch.optim.AdamW(layer.parameters(), fused=True)
    guarded = step.GuardedUpdate(layer, adamw, max_grad_norm=None)
    before = layer.weight.detach().clone()
    for loss in (math.inf, 1.0):  # it stays stopped
        layer.weight.grad, layer.bias.grad = torch.ones(2, 2), torch.ones(2)
        assert guarded.update(torch.tensor(loss), lr=1.0).item() == pytest.approx(6**0.5)
        assert torch.equal(layer.weight, before)


# --- what a step costs ---------------------------------------------------------------------------

DISPATCHED_WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique", "masked_select"}
PYTHON_WAITS = {"item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__contains__"}
"""Methods of a tensor by which the host reads it; on the CPU some of them, such as tolist, dispatch nothing."""


class Operations:
    """Records the operations of the body: all that are dispatched, and those whose results the host waits for."""

    def __init__(self):
        self.all, self.waits = [], []
        names, waits = self.all, self.waits

        class Dispatched(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                name = function.overloadpacket.__name__
                names.append(name)
                if name in DISPATCHED_WAITS:
                    waits.append(name)
                return function(*args, **(kwargs or {}))

        class Called(TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                if getattr(function, "__name__", "") in PYTHON_WAITS:
                    waits.append(function.__name__)
                return function(*args, **(kwargs or {}))

        self._modes = Dispatched(), Called()

    def __enter__(self):
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error):
        for mode in reversed(self._modes):
            mode.__exit__(*error)


def operations_by_step(run):
    """Train a run of one epoch. Returns the dispatched operations and the waits of each step, with its pause."""
    operations, marks = Operations(), []
    loader = run.task.train

    class Marked:
        """The loader, which marks in the operations where each step begins and ends."""

        def __len__(self):
            return len(loader)

        def epoch_batches(self, *args):
            for batch in loader.epoch_batches(*args):
                marks.append((len(operations.all), len(operations.waits)))
                yield batch
                marks.append((len(operations.all), len(operations.waits)))

    run.task = dataclasses.replace(run.task, train=Marked())
    with operations:
        run.fit()
    marks.append((len(operations.all), len(operations.waits)))
    spans = zip(marks[::2], marks[1::2], strict=True)
    return [(operations.all[a:b], operations.waits[c:d]) for (a, c), (b, d) in spans]


@pytest.mark.parametrize(
    "read",
    [
        lambda tensor: tensor.item(),
        lambda tensor: tensor.tolist(),
        lambda tensor: float(tensor),
        lambda tensor: bool(tensor),
        lambda tensor: tensor.numpy(),
        lambda tensor: tensor.cpu(),
        lambda tensor: f"{torch.stack([tensor, tensor]).tolist()}",
    ],
)
def test_operations_record_a_wait_when_the_host_reads_a_tensor(read):
    with Operations() as operations:
        read(torch.ones(()))
    assert operations.waits


def test_unmonitored_step_does_not_make_the_host_wait(settings):
    settings.train.epochs, settings.train.log_every, settings.monitor.every = 1, 100, 3
    run = PreparedRun(settings)
    batch = next(run.task.train.epoch_batches(0, 0))
    with Operations() as operations:
        run.task.classifier(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    assert "_local_scalar_dense" in operations.waits  # it records waits caused by transformers itself

    waits = [bool(waits) for _, waits in operations_by_step(run)]
    assert waits == [True, False, False, True, False, True]  # steps 0 and 3 are monitored, the last one ends the epoch


def test_unmonitored_step_runs_the_operations_of_one_with_monitor_off(settings):
    settings.train.epochs, settings.train.log_every, settings.monitor.every = 1, 100, 3
    watched = [names for names, _ in operations_by_step(PreparedRun(settings))]
    off = [names for names, _ in operations_by_step(PreparedRun(without_monitor(settings)))]
    assert len(watched) == len(off) == 6
    for number in (1, 2, 4):
        assert len(off[number]) > 100
        assert watched[number] == off[number]
    assert len(watched[3]) > len(off[3])


# --- torch.compile, devices, kernels -------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own import
def test_compiled_step_equals_the_eager_one_up_to_rounding(settings):
    settings.model.num_hidden_layers = 1
    settings.model.hidden_dropout_prob = settings.model.attention_probs_dropout_prob = 0.0
    settings.data.bucket_lengths = [32]
    settings.train.epochs = 1
    losses = {}
    counters.clear()
    for compiles in (False, True):
        settings.train.compile = compiles
        run = PreparedRun(without_monitor(settings)).fit()
        losses[compiles] = run.history.losses
        assert (counters["stats"]["unique_graphs"] > 0) is compiles
        assert (run.state.compile_seconds > 0) is compiles
        assert run.state.train_seconds > run.state.compile_seconds
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


def test_compile_without_a_compiler_is_one_clear_error(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(InputError, match=r"train\.compile: expected a C\+\+ compiler \(g\+\+, or \$CXX\).*, got none"):
        step.maybe_compile(torch.nn.Linear(1, 1), enabled=True)


def test_device_auto_is_the_first_available_and_a_missing_one_is_an_error(monkeypatch):
    assert step.resolve_device(Device.cpu) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert step.resolve_device(Device.auto) == torch.device("cpu")
    with pytest.raises(InputError, match="device: expected one of cpu on this machine, got cuda"):
        step.resolve_device(Device.cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert step.resolve_device(Device.auto) == torch.device("cuda")


def test_determinism_is_set_by_the_last_run():
    for wanted in (True, False):
        step.set_determinism(wanted)
        assert torch.are_deterministic_algorithms_enabled() is wanted
