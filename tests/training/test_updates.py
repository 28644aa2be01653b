"""The parts of an update: accumulated batches, class weights, layer-wise rates, each compared with plain code."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from bertmon import optimizer
from bertmon.config import OptimizerConfig, Precision, SaveModel
from bertmon.data import Split
from bertmon.errors import InputError
from bertmon.monitor.history import HISTORY_FILE, History
from bertmon.training.class_weights import chance_loss, class_weights
from bertmon.training.run_training import run_training
from bertmon.training.step import forward_backward
from bertmon.training.task import build_task


def gradients(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def plain_logits(model, batch):
    return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


@pytest.mark.parametrize("weights", [None, [0.5, 2.0]])
def test_accumulated_gradients_equal_those_of_the_mean_over_all_texts(settings, weights):
    task = build_task(settings, torch.device("cpu"))
    task.classifier.eval()
    batches = list(task.train.epoch_batches(0, 0))[-3:]
    assert [batch.global_size for batch in batches] == [8, 8, 4]  # including a smaller one
    weight = None if weights is None else torch.tensor(weights)
    loss, logits = forward_backward(task.classifier, batches, Precision.fp32, weight)
    accumulated = gradients(task.classifier)

    task.classifier.zero_grad()
    all_logits = torch.cat([plain_logits(task.classifier, batch) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    losses = F.cross_entropy(all_logits, labels, reduction="none")
    factors = torch.ones(len(labels)) if weight is None else weight[labels]
    expected = (losses * factors).sum() / factors.sum()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(accumulated, gradients(task.classifier), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(logits, all_logits[:8].detach(), rtol=1e-5, atol=1e-6)


def test_accumulate_takes_fewer_steps_over_the_same_texts(settings):
    settings.train.accumulate = 4
    task = build_task(settings, torch.device("cpu"))
    assert (len(task.train), task.steps_per_epoch, len(task.plan)) == (6, 2, 4)


def test_balanced_class_weights_match_scikit_learn():
    labels = [0] * 90 + [1] * 9 + [2]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert class_weights("balanced", labels, ["a", "b", "c"]) == pytest.approx(expected.tolist())


def test_class_weights_by_position_and_by_name():
    assert class_weights([1, 2.5], [0, 1], ["ham", "spam"]) == [1.0, 2.5]
    assert class_weights({"spam": 5}, [0, 1], ["ham", "spam"]) == [1.0, 5.0]
    assert class_weights(None, [0, 1], ["ham", "spam"]) is None


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([1.0], r"train\.class_weights: expected 2 numbers, got \[1\.0\]"),
        ({"eggs": 2.0}, r"train\.class_weights: expected label names among ham, spam, got eggs"),
        ("balanced", r"train\.class_weights: expected training texts of every class, got none of spam"),
    ],
)
def test_class_weights_of_classes_that_do_not_exist_are_refused(wanted, message):
    with pytest.raises(InputError, match=message):
        class_weights(wanted, [0, 0], ["ham", "spam"])


def test_chance_loss_is_the_lowest_of_any_constant_prediction():
    labels, weights = [0] * 30 + [1] * 10, [1.0, 2.0]
    chance = chance_loss(Split(["x"] * 40, labels), weights)

    def weighted_loss(probability):
        return -(30 * math.log(probability) + 2 * 10 * math.log(1 - probability)) / (30 + 2 * 10)

    assert chance == pytest.approx(min(weighted_loss(number / 1000) for number in range(1, 1000)), abs=1e-6)
    assert chance_loss(Split(["x"] * 4, [0, 0, 1, 1]), None) == pytest.approx(math.log(2))


def test_lr_scales_fall_from_the_head_to_the_embeddings(settings):
    task = build_task(settings, torch.device("cpu"))
    config = OptimizerConfig(lr=1e-3, layer_decay=0.5, head_lr=1e-2)
    scales = optimizer.lr_scales(config, task.classifier)
    by_name = {name: scales[parameter] for name, parameter in task.classifier.named_parameters()}
    assert by_name["classifier.weight"] == pytest.approx(10.0)
    assert by_name["bert.pooler.dense.weight"] == 1.0
    assert by_name["bert.encoder.layer.1.output.dense.weight"] == 0.5
    assert by_name["bert.encoder.layer.0.output.LayerNorm.bias"] == 0.25
    assert by_name["bert.embeddings.word_embeddings.weight"] == 0.125


def test_frozen_layers_do_not_change_and_are_not_measured(settings, tmp_path, caplog):
    caplog.set_level("INFO")
    settings.model.frozen_layers = 1
    before = build_task(settings, torch.device("cpu")).classifier.state_dict()
    settings.train.save_model = SaveModel.last
    assert run_training(settings, tmp_path, name="test").status == "finished"
    after = load_file(tmp_path / "model" / "model.safetensors")
    frozen = {name for name in after if torch.equal(after[name], before[name])}
    assert frozen == {name for name in after if "embeddings" in name or ".layer.0." in name}
    labels = History.load(tmp_path / HISTORY_FILE).snapshots[0].layers.labels
    assert [label for label in labels if "embeddings" in label or "enc.l.0" in label] == []
    assert "enc.l.1.output.dense" in labels
    assert "M of them frozen, on cpu" in caplog.text


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_gradients_above_frozen_layers_equal_those_of_an_unfrozen_model(settings, layers):
    def gradients_of_one_batch():
        task = build_task(settings, torch.device("cpu"))
        forward_backward(task.classifier, list(task.train.epoch_batches(0, 0))[:1], Precision.fp32)
        return {name: parameter.grad for name, parameter in task.classifier.named_parameters()}

    unfrozen = gradients_of_one_batch()
    settings.model.frozen_layers = layers
    partial = gradients_of_one_batch()
    assert sum(gradient is None for gradient in partial.values()) == 5 + 16 * layers
    for name, gradient in partial.items():
        assert gradient is None or torch.equal(gradient, unfrozen[name]), name


def test_every_weight_is_measured_by_its_own_rate(settings, tmp_path):
    settings.monitor.every, settings.monitor.figures = 1, False
    snapshots = {}
    for layer_decay in (1.0, 0.5):
        settings.optimizer = OptimizerConfig(lr=1e-3, layer_decay=layer_decay)
        run_dir = tmp_path / str(layer_decay)
        run_dir.mkdir()
        run_training(settings, run_dir, name="test")
        snapshots[layer_decay] = History.load(run_dir / HISTORY_FILE).snapshots
    table = snapshots[0.5][1].layers
    assert dict(zip(table.labels, table.lr_scales, strict=True))["enc.l.0.output.dense"] == 0.25
    assert snapshots[1.0][1].layers.lr_scales == ()
    row = table.labels.index("enc.l.0.output.dense")
    first, scaled = (snapshots[decay][1]["update_ratio"][row] for decay in (1.0, 0.5))
    assert scaled == pytest.approx(first / 4, rel=1e-3)  # step 1 is the first that moves weights
    for plain, other in zip(snapshots[1.0][1:3], snapshots[0.5][1:3], strict=True):
        assert other.signals["update_per_lr/linear"] == pytest.approx(plain.signals["update_per_lr/linear"], rel=0.2)
