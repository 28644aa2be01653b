import math

import pytest
import torch

from bertmon import step
from bertmon.config import Device, InputError, Precision
from bertmon.run import assemble


def test_gradients_equal_those_of_the_plain_loss(settings):
    _, parts = assemble(settings, torch.device("cpu"))
    batch = next(parts.train.shuffled(0, 0))
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


def test_bf16_is_close_to_fp32_and_returns_float32(settings):
    _, parts = assemble(settings, torch.device("cpu"))
    parts.classifier.eval()
    batch = next(parts.train.shuffled(0, 0))
    exact = step.logits(parts.classifier, batch, Precision.fp32)
    rounded = step.logits(parts.classifier, batch, Precision.bf16)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, rtol=0.05, atol=0.05)
    step.forward_backward(parts.classifier, batch, Precision.bf16)
    assert all(p.grad.dtype == torch.float32 for p in parts.classifier.parameters())


def test_the_spread_is_that_of_the_texts_and_not_of_dropout_or_rounding(settings):
    _, parts = assemble(settings, torch.device("cpu"))
    model = parts.classifier
    batch = next(parts.train.shuffled(0, 0))
    twice = batch._replace(input_ids=batch.input_ids[[0] * batch.texts])
    twice = twice._replace(attention_mask=batch.attention_mask[[0] * batch.texts])

    scores = step.logits(model, twice, Precision.fp32).detach()
    assert scores.std(dim=0).mean() > 1e-3  # dropout: one text has many scores
    before = torch.get_rng_state()
    assert step.Probe(model, Precision.fp32).spread(0, twice, scores) < 1e-6
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)

    model.eval()
    exact = step.logits(model, batch, Precision.fp32).detach()[:8]
    plain = pytest.approx(exact.double().numpy().std(axis=0).mean(), rel=1e-5)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rounded = step.logits(model, batch, Precision.bf16).detach()
    assert rounded.std(dim=0, correction=0).mean().item() != plain
    assert step.Probe(model, Precision.bf16).spread(0, batch, rounded).item() == plain
    assert step.Probe(model, Precision.fp32).spread(0, batch, exact).item() == plain
    assert math.isnan(step.Probe(model, Precision.fp32).spread(0, batch, exact[:1]))


def test_a_pass_for_the_spread_is_made_at_most_every_tenth_step(settings, monkeypatch):
    _, parts = assemble(settings, torch.device("cpu"))  # it has dropout
    batch = next(parts.train.shuffled(0, 0))
    scores = torch.zeros(8, 2)
    passes = []
    original = step.logits
    monkeypatch.setattr(step, "logits", lambda *given: passes.append(given) or original(*given))
    probe = step.Probe(parts.classifier, Precision.fp32)
    found = [probe.spread(number, batch, scores).item() for number in range(21)]
    assert len(passes) == 3
    measured = {number: spread for number, spread in enumerate(found) if not math.isnan(spread)}
    assert list(measured) == [0, 10, 20]
    assert len(set(measured.values())) == 1  # the weights are the same all along

    for module in parts.classifier.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    free = step.Probe(parts.classifier, Precision.fp32)
    assert [free.spread(number, batch, torch.eye(2) * number).item() for number in (1, 2)] == [0.5, 1.0]
    assert len(passes) == 3


def test_the_device_that_is_there(monkeypatch):
    assert step.pick_device(Device.cpu) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert step.pick_device(Device.auto) == torch.device("cpu")
    with pytest.raises(InputError, match="device=cuda is not possible: this machine has cpu"):
        step.pick_device(Device.cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert step.pick_device(Device.auto) == torch.device("cuda")


def test_determinism_is_as_the_last_run_wants_it():
    for wanted in (True, False):
        step.set_determinism(wanted)
        assert torch.are_deterministic_algorithms_enabled() is wanted
