import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from bertmon import optimizer
from bertmon.config import OptimizerConfig
from bertmon.errors import InputError


def plain_adamw(config, lr, parameter, gradients):
    """The docstring's equations, for one tensor in float64."""
    p = parameter.double().clone()
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for t, g in enumerate((g.double() for g in gradients), start=1):
        m = config.beta1 * m + (1 - config.beta1) * g
        v = config.beta2 * v + (1 - config.beta2) * g * g
        c1 = 1 - config.beta1**t if config.bias_correction else 1
        c2 = 1 - config.beta2**t if config.bias_correction else 1
        if parameter.ndim >= 2:
            p = p - lr * config.weight_decay * p
        p = p - lr * (m / c1) / ((v / c2).sqrt() + config.eps)
    return p


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_optimizer_step_equals_the_equations(bias_correction, weight_decay):
    config = OptimizerConfig(bias_correction=bias_correction, weight_decay=weight_decay)
    torch.manual_seed(0)
    start = [torch.randn(5, 3), torch.randn(4)]
    gradients = [[torch.randn_like(p) * 10.0**-k for p in start] for k in range(20)]

    parameters = [torch.nn.Parameter(p.clone()) for p in start]
    adamw = optimizer.build_optimizer(config, parameters)
    for group in adamw.param_groups:
        group["lr"] = 1e-2
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient
        adamw.step()

    for index, parameter in enumerate(parameters):
        expected = plain_adamw(config, 1e-2, start[index], [step[index] for step in gradients])
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-6, atol=1e-6)


def test_first_step_without_correction_is_larger_by_the_known_factor():
    moved = {}
    for bias_correction in (True, False):
        parameter = torch.nn.Parameter(torch.zeros(1, 1))
        adamw = optimizer.build_optimizer(OptimizerConfig(bias_correction=bias_correction, eps=1e-12), [parameter])
        adamw.param_groups[0]["lr"] = 1e-3
        parameter.grad = torch.ones(1, 1)
        adamw.step()
        moved[bias_correction] = parameter.item()
    assert moved[False] / moved[True] == pytest.approx((1 - 0.9) / (1 - 0.999) ** 0.5, rel=1e-5)


def test_optimizer_leaves_frozen_parameters_out_and_starts_at_rate_0():
    frozen = torch.nn.Parameter(torch.ones(2, 2), requires_grad=False)
    trained = torch.nn.Parameter(torch.ones(2, 2))
    adamw = optimizer.build_optimizer(OptimizerConfig(), [frozen, trained])
    assert [p is trained for group in adamw.param_groups for p in group["params"]] == [True]
    trained.grad = torch.ones(2, 2)
    adamw.step()
    assert torch.equal(trained.detach(), torch.ones(2, 2))


def test_bias_correction_gain_is_the_ratio_of_the_first_steps():
    config = OptimizerConfig(bias_correction=False)
    for step in range(3):
        expected = (1 - 0.9 ** (step + 1)) / (1 - 0.999 ** (step + 1)) ** 0.5
        assert optimizer.bias_correction_gain(config, step) == pytest.approx(expected)
    assert optimizer.bias_correction_gain(config, 10**5) == pytest.approx(1.0)
    assert optimizer.bias_correction_gain(OptimizerConfig(bias_correction=True), 0) == 1.0


def tiny_model(family, **keys):
    config = AutoConfig.for_model(family, vocab_size=8, pad_token_id=0, **keys)
    return AutoModelForSequenceClassification.from_config(config)


def test_lr_scales_of_embeddings_do_not_depend_on_their_name():
    model = tiny_model("xlnet", d_model=4, n_layer=2, n_head=1, d_inner=4)
    scales = optimizer.lr_scales(OptimizerConfig(layer_decay=0.5), model)
    names = {name: scales[parameter] for name, parameter in model.named_parameters()}
    assert names["transformer.word_embedding.weight"] == 0.125
    assert names["transformer.layer.0.ff.layer_1.weight"] == 0.25
    assert names["transformer.layer.1.ff.layer_1.weight"] == 0.5
    assert names["logits_proj.weight"] == 1.0


def test_layer_decay_of_a_model_without_numbered_layers_is_refused():
    model = tiny_model(
        "albert", hidden_size=4, embedding_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4
    )
    with pytest.raises(InputError, match=r"optimizer\.layer_decay: expected 1 for albert, .* got 0\.5"):
        optimizer.lr_scales(OptimizerConfig(layer_decay=0.5), model)
    assert set(optimizer.lr_scales(OptimizerConfig(), model).values()) == {1.0}


def test_layer_decay_of_a_model_with_a_decoder_is_refused():
    model = tiny_model("t5", d_model=4, d_kv=2, d_ff=4, num_layers=2, num_heads=2)
    with pytest.raises(InputError, match=r"expected 1 for t5, which has a decoder, got 0\.5"):
        optimizer.lr_scales(OptimizerConfig(layer_decay=0.5), model)


def test_lr_scales_of_a_model_without_an_embedding_table_are_1():
    model = tiny_model("canine", hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    assert set(optimizer.lr_scales(OptimizerConfig(), model).values()) == {1.0}
