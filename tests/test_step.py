import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from bertmon.config import Device, ModelConfig, Precision
from bertmon.data.batches import Batch
from bertmon.errors import InputError
from bertmon.model import build_model
from bertmon.monitor.history import History
from bertmon.monitor.monitor import PendingScalars
from bertmon.run import build_task
from bertmon.training import step, trainer

TASK = {"label_names": ("no", "yes"), "vocab_size": 120, "pad_id": 0, "max_length": 32}
TINY_SHAPE = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 40}


def test_gradients_equal_those_of_the_plain_loss(settings):
    _, parts = build_task(settings, torch.device("cpu"))
    batch = next(parts.train.epoch_batches(0, 0))
    parts.classifier.eval()  # no dropout, so that both see the same network
    loss, scores = step.forward_backward(parts.classifier, batch, Precision.fp32)
    found = [parameter.grad.clone() for parameter in parts.classifier.parameters()]

    parts.classifier.zero_grad()
    log_likelihood = 0
    for row, label in enumerate(batch.labels):
        length = int(batch.attention_mask[row].sum())
        alone = parts.classifier(input_ids=batch.input_ids[row : row + 1, :length]).logits[0]
        log_likelihood = log_likelihood + alone.log_softmax(dim=0)[label]
    (-log_likelihood / len(batch.labels)).backward()
    assert loss.item() == pytest.approx(-log_likelihood.item() / len(batch.labels), rel=1e-5)
    assert not loss.requires_grad
    assert not scores.requires_grad
    for ours, parameter in zip(found, parts.classifier.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", [*step._ACCEPTS_4D_MASK, "deberta-v2"])
@pytest.mark.parametrize("padded", [True, False])
def test_the_mask_is_the_one_that_the_model_would_make(family, padded):
    torch.manual_seed(0)
    model = build_model(ModelConfig(**TINY_SHAPE, model_type=family), **TASK).eval()
    lengths = np.array([8, 5 if padded else 8])
    mask = (torch.arange(8) < torch.from_numpy(lengths)[:, None]).int()
    ids = torch.randint(5, 120, (2, 8), dtype=torch.int32) * mask
    batch = Batch(ids, mask, torch.tensor([0, 1]), 2, lengths)
    expected = model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(step.compute_logits(model, batch, Precision.fp32), expected)


class Questions(TorchDispatchMode):
    """Notes each operation whose result the host has to wait for."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique", "masked_select"):
            self.asked.append(name)
        return function(*args, **(kwargs or {}))


def test_the_host_waits_for_nothing_in_a_step_that_is_not_watched(settings):
    settings.train.log_every = 100
    _, parts = build_task(settings, torch.device("cpu"))
    batch = next(parts.train.epoch_batches(0, 0))
    with Questions() as probe:
        parts.classifier(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    assert probe.asked == ["_local_scalar_dense"]  # it sees what transformers asks for by itself

    history = History(trainer.plan_run(settings, len(parts.train), 1.0))
    questions = Questions()
    asked = []

    class Loop:
        """The batches, with what each step has asked."""

        def __len__(self):
            return len(parts.train)

        def shuffled(self, *args):
            for batch in parts.train.epoch_batches(*args):
                asked.append(len(questions.asked))
                yield batch
            asked.append(len(questions.asked))

    looped = dataclasses.replace(parts, train=Loop())
    settings.train.epochs = 1
    with questions:
        trainer.fit(
            looped, settings, history, observer=None, record=lambda *_: None, outcome=trainer.TrainState(), name=""
        )
    assert np.diff(asked[:-1]).tolist() == [0] * (len(parts.train) - 1)  # the last one ends the epoch


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", list(Precision))
def test_cuda_waits_for_nothing_in_a_step_that_is_not_watched(settings, precision):
    _, parts = build_task(settings, torch.device("cuda"))
    updater, numbers = step.GuardedUpdate(parts.classifier, parts.optimizer, 1.0), PendingScalars()
    for number, batch in enumerate(parts.train.epoch_batches(0, 0)):
        loss, _ = step.forward_backward(parts.classifier, batch, precision)
        numbers.add(loss, updater.update(loss, 1e-4))
        if number == 1:  # the first steps allocate, and choose kernels
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own import
def test_a_compiled_step_is_the_eager_one_but_for_rounding(settings):
    settings.model.num_hidden_layers = 1
    settings.model.hidden_dropout_prob = settings.model.attention_probs_dropout_prob = 0.0
    settings.data.bucket_lengths = [32]
    settings.train.epochs = 1
    told = {}
    counters.clear()
    for compiles in (False, True):
        settings.train.compile = compiles
        _, parts = build_task(settings, torch.device("cpu"))
        history, outcome = History(trainer.plan_run(settings, len(parts.train), 1.0)), trainer.TrainState()
        trainer.fit(parts, settings, history, observer=None, record=lambda *_: None, outcome=outcome, name="")
        told[compiles] = history.losses
        assert (counters["stats"]["unique_graphs"] > 0) is compiles
        assert (outcome.compile_seconds > 0) is compiles
        assert outcome.train_seconds > outcome.compile_seconds
    assert told[True] == pytest.approx(told[False], rel=1e-4)


def test_no_compiler_is_one_clear_error(settings, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(InputError, match=r"train\.compile=true is not possible on the CPU: it needs a C\+\+ compiler"):
        step.maybe_compile(torch.nn.Linear(1, 1), wanted=True)


def test_bf16_is_close_to_fp32_and_returns_float32(settings):
    _, parts = build_task(settings, torch.device("cpu"))
    parts.classifier.eval()
    batch = next(parts.train.epoch_batches(0, 0))
    exact = step.compute_logits(parts.classifier, batch, Precision.fp32)
    rounded = step.compute_logits(parts.classifier, batch, Precision.bf16)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, rtol=0.05, atol=0.05)
    step.forward_backward(parts.classifier, batch, Precision.bf16)
    assert all(p.grad.dtype == torch.float32 for p in parts.classifier.parameters())


def test_the_spread_is_that_of_the_texts_and_not_of_dropout_or_rounding(settings):
    _, parts = build_task(settings, torch.device("cpu"))
    model = parts.classifier
    batch = next(parts.train.epoch_batches(0, 0))
    twice = batch._replace(input_ids=batch.input_ids[[0] * batch.texts])
    twice = twice._replace(
        attention_mask=batch.attention_mask[[0] * batch.texts], lengths=batch.lengths[[0] * batch.texts]
    )

    scores = step.compute_logits(model, twice, Precision.fp32).detach()
    assert scores.std(dim=0).mean() > 1e-3  # dropout: one text has many scores
    before = torch.get_rng_state()
    assert step.LogitProbe(model, Precision.fp32).logit_std(0, twice, scores) < 1e-6
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)

    model.eval()
    exact = step.compute_logits(model, batch, Precision.fp32).detach()[:8]
    plain = pytest.approx(exact.double().numpy().std(axis=0).mean(), rel=1e-5)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rounded = step.compute_logits(model, batch, Precision.bf16).detach()
    assert rounded.std(dim=0, correction=0).mean().item() != plain
    assert step.LogitProbe(model, Precision.bf16).logit_std(0, batch, rounded).item() == plain
    assert step.LogitProbe(model, Precision.fp32).logit_std(0, batch, exact).item() == plain
    assert math.isnan(step.LogitProbe(model, Precision.fp32).logit_std(0, batch, exact[:1]))


def test_a_pass_for_the_spread_is_made_at_most_every_tenth_step(settings, monkeypatch):
    _, parts = build_task(settings, torch.device("cpu"))  # it has dropout
    batch = next(parts.train.epoch_batches(0, 0))
    scores = torch.zeros(8, 2)
    passes = []
    original = step.compute_logits
    monkeypatch.setattr(step, "logits", lambda *given: passes.append(given) or original(*given))
    probe = step.LogitProbe(parts.classifier, Precision.fp32)
    found = [probe.logit_std(number, batch, scores).item() for number in range(21)]
    assert len(passes) == 3
    measured = {number: spread for number, spread in enumerate(found) if not math.isnan(spread)}
    assert list(measured) == [0, 10, 20]
    assert len(set(measured.values())) == 1  # the weights are the same all along

    for module in parts.classifier.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    free = step.LogitProbe(parts.classifier, Precision.fp32)
    assert [free.logit_std(number, batch, torch.eye(2) * number).item() for number in (1, 2)] == [0.5, 1.0]
    assert len(passes) == 3


def test_the_device_that_is_there(monkeypatch):
    assert step.resolve_device(Device.cpu) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert step.resolve_device(Device.auto) == torch.device("cpu")
    with pytest.raises(InputError, match="device=cuda is not possible: this machine has cpu"):
        step.resolve_device(Device.cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert step.resolve_device(Device.auto) == torch.device("cuda")


def test_determinism_is_as_the_last_run_wants_it():
    for wanted in (True, False):
        step.set_determinism(wanted)
        assert torch.are_deterministic_algorithms_enabled() is wanted
