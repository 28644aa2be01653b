"""The standard deviation of the logits: over the texts only, and with an extra pass at most every tenth step."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from bertmon.config import Precision
from bertmon.monitor.probe import MAX_TEXTS, LogitProbe, first_texts, is_exact
from bertmon.training import step
from bertmon.training.task import build_task


@pytest.fixture
def task(settings):
    return build_task(settings, torch.device("cpu"))


@pytest.fixture
def batch(task):
    return next(task.train.epoch_batches(0, 0))


def turn_off_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0


def test_logit_std_of_one_text_repeated_is_zero_despite_dropout(task, batch):
    model, same = task.classifier, [0] * batch.global_size
    repeated = batch._replace(
        input_ids=batch.input_ids[same],
        attention_mask=batch.attention_mask[same],
        token_counts=batch.token_counts[same],
    )
    logits = step.compute_logits(model, repeated, Precision.fp32).detach()
    assert logits.std(dim=0).mean() > 1e-3  # dropout: one text has many logits
    random_state = torch.get_rng_state()
    assert step.build_probe(model, Precision.fp32).logit_std(0, repeated, logits) < 1e-6
    assert model.training
    assert torch.equal(torch.get_rng_state(), random_state)


def test_logit_std_is_that_of_float32_at_any_precision(task, batch):
    model = task.classifier
    model.eval()
    exact = step.compute_logits(model, batch, Precision.fp32).detach()[:8]
    plain = pytest.approx(exact.double().numpy().std(axis=0).mean(), rel=1e-5)
    turn_off_dropout(model)
    rounded = step.compute_logits(model, batch, Precision.bf16).detach()
    assert rounded.std(dim=0, correction=0).mean().item() != plain
    assert step.build_probe(model, Precision.bf16).logit_std(0, batch, rounded).item() == plain
    assert step.build_probe(model, Precision.fp32).logit_std(0, batch, exact).item() == plain
    assert math.isnan(step.build_probe(model, Precision.fp32).logit_std(0, batch, exact[:1]))


def test_logit_std_with_dropout_runs_a_pass_at_most_every_tenth_step(task, batch, monkeypatch):
    passes = []
    compute_logits = step.compute_logits
    monkeypatch.setattr(step, "compute_logits", lambda *args: passes.append(args) or compute_logits(*args))
    probe = step.build_probe(task.classifier, Precision.fp32)  # the model has dropout
    values = [probe.logit_std(number, batch, torch.zeros(8, 2)) for number in range(21)]
    assert len(passes) == 3
    measured = {number: value.item() for number, value in enumerate(values) if value is not None}
    assert list(measured) == [0, 10, 20]
    assert len(set(measured.values())) == 1  # the weights do not change


def test_logit_std_of_an_exact_training_pass_needs_no_extra_pass(task, batch, monkeypatch):
    turn_off_dropout(task.classifier)
    monkeypatch.setattr(step, "compute_logits", lambda *args: pytest.fail("a pass was made"))
    probe = step.build_probe(task.classifier, Precision.fp32)
    assert [probe.logit_std(number, batch, torch.eye(2) * number).item() for number in (1, 2)] == [0.5, 1.0]


@pytest.mark.parametrize("precision", list(Precision))
def test_training_logits_are_used_only_in_float32_without_dropout(task, precision):
    assert not is_exact(task.classifier)
    turn_off_dropout(task.classifier)
    assert is_exact(task.classifier)
    exact = step.build_probe(task.classifier, precision)._training_logits is not None
    assert exact is (precision is Precision.fp32)


def test_logit_std_pass_reads_only_the_first_texts(task, batch):
    larger = batch._replace(
        input_ids=batch.input_ids.repeat(3, 1),
        attention_mask=batch.attention_mask.repeat(3, 1),
        labels=batch.labels.repeat(3),
        token_counts=np.tile(batch.token_counts, 3),
        global_size=3 * batch.global_size,
    )
    sizes = []
    task.classifier.register_forward_hook(
        lambda model, args, inputs, _: sizes.append(inputs["input_ids"].shape[0]), with_kwargs=True
    )
    assert step.build_probe(task.classifier, Precision.fp32).logit_std(0, larger, None) > 0
    assert sizes == [MAX_TEXTS]


def test_logit_std_without_logits_of_the_training_pass_computes_them(task, batch):
    turn_off_dropout(task.classifier)
    probe = step.build_probe(task.classifier, Precision.fp32)
    logits = step.compute_logits(task.classifier, batch, Precision.fp32).detach()
    without = probe.logit_std(0, batch, None).item()
    assert without == pytest.approx(probe.logit_std(0, batch, logits).item(), rel=1e-5)


def test_first_texts_cuts_only_the_rows_of_tensors():
    inputs = {"input_ids": torch.arange(40).reshape(20, 2), "scale": torch.ones(()), "flag": True}
    first = first_texts(inputs)
    assert first["input_ids"].tolist() == inputs["input_ids"][:8].tolist()
    assert (first["scale"], first["flag"]) == (inputs["scale"], True)


def test_probe_that_raises_restores_the_mode_of_every_module():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
    model[0].eval()

    def forward(batch):
        assert not model.training
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        LogitProbe(model, forward).logit_std(0, None, None)
    assert [model.training, model[0].training, model[1].training] == [True, False, True]


@pytest.mark.parametrize(
    ("family", "keys", "exact"),
    [
        ("bert", {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}, True),
        ("bert", {}, False),
        ("opt", {"word_embed_proj_dim": 4, "ffn_dim": 4}, False),  # its dropout is no module
        ("opt", {"word_embed_proj_dim": 4, "ffn_dim": 4, "dropout": 0.0, "attention_dropout": 0.0}, True),
    ],
)
def test_is_exact_recognizes_dropout_of_every_family(family, keys, exact):
    sizes = {"vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "pad_token_id": 0}
    config = AutoConfig.for_model(family, **sizes, **keys)
    assert is_exact(AutoModelForSequenceClassification.from_config(config)) is exact
