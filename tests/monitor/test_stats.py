"""Statistics of gradients, updates and logits, compared with their definitions."""

import math

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bertmon.monitor import stats
from bertmon.monitor.history import STATISTICS


def plain_statistics(gradient):
    """The definitions, in numpy and float64."""
    size = np.abs(gradient.double().numpy()).ravel()
    return [size.mean(), size.max(), size.std(), (size == 0).mean()]


def on_cpu(gradients):
    return stats.gradient_statistics_cpu(gradients, stats.GroupedBuffer(gradients))


def on_other_devices(gradients):
    return stats.gradient_statistics_foreach(gradients, stats.GroupedBuffer(gradients))


@pytest.fixture(params=[on_cpu, on_other_devices])
def gradient_statistics(request):
    """Both implementations: for the CPU, and for all other devices."""
    return request.param


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e-10, 1e-30, 1e6, 1e30])
def test_gradient_statistics_of_any_scale_equal_their_definitions(gradient_statistics, scale):
    torch.manual_seed(0)
    sparse = torch.randn(40, 30) * (torch.rand(40, 30) < 0.2)
    transposed = torch.randn(6, 8).T
    gradients = [torch.randn(7, 5), sparse, torch.randn(9), torch.zeros(3, 3), transposed, 5 + torch.randn(300, 1000)]
    gradients = [gradient * scale for gradient in gradients]
    values = gradient_statistics(gradients).numpy()
    assert values.shape == (6, 4)
    expected = np.array([plain_statistics(gradient) for gradient in gradients])
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_gradient_statistics_of_bfloat16_equal_their_definitions(gradient_statistics):
    torch.manual_seed(0)
    gradient = torch.randn(50, 40, dtype=torch.bfloat16)
    np.testing.assert_allclose(gradient_statistics([gradient])[0], plain_statistics(gradient), rtol=1e-3)


def test_gradient_statistics_of_one_element_and_of_a_constant_have_no_deviation(gradient_statistics):
    values = gradient_statistics([torch.tensor([3.0]), torch.full((1000,), 0.1)]).numpy()
    assert values[0].tolist() == [3, 3, 0, 0]
    assert values[1, 2] < 1e-8


def test_gradient_statistics_of_infinity_and_nan_are_not_finite(gradient_statistics):
    values = gradient_statistics([torch.tensor([1.0, math.inf]), torch.tensor([1.0, math.nan])]).numpy()
    assert math.isinf(values[0, 0])
    assert math.isinf(values[0, 1])
    assert math.isnan(values[1, 0])
    assert math.isnan(values[1, 1])


# --- updates -------------------------------------------------------------------------------------


def test_update_statistics_of_two_steps_equal_their_definitions():
    parameters = [torch.nn.Parameter(p) for p in (torch.tensor([3.0, 4.0]), torch.zeros(2), torch.ones(2, 2))]
    unused = torch.nn.Parameter(torch.ones(3))
    statistics = stats.WeightStatistics([parameters[0], unused, *parameters[1:]])
    for after in (torch.tensor([3.0, 4.5]), torch.ones(2), torch.ones(2, 2)), (torch.zeros(2), torch.zeros(2), None):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        before = [parameter.detach().clone() for parameter in parameters]
        statistics.measure_gradients()
        statistics.keep_weights()
        with torch.no_grad():
            for parameter, value in zip(parameters, after, strict=True):
                parameter.copy_(parameter if value is None else value)
        rows, values = statistics.measure_updates()
        assert rows == [0, 2, 3]
        for old, new, ratio, rms in zip(before, parameters, *values[:, 4:].T.tolist(), strict=True):
            change = (new - old).detach().norm().item() / old.norm().item() if old.any() else math.nan
            assert ratio == pytest.approx(change, nan_ok=True)
            assert rms == pytest.approx(old.square().mean().sqrt().item())


def test_weight_statistics_follow_the_parameters_with_gradients():
    parameters = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
    statistics = stats.WeightStatistics(parameters)
    for live in ([0], [0, 1], [1]):
        for row, parameter in enumerate(parameters):
            parameter.grad = torch.full_like(parameter, 2.0) if row in live else None
        statistics.measure_gradients()
        statistics.keep_weights()
        rows, values = statistics.measure_updates()
        assert rows == live
        assert values.tolist() == [pytest.approx([2, 2, 0, 0, 0, 1], abs=1e-7)] * len(live)


class HostToDevice(TorchFunctionMode):
    """Records tensors made from Python's or numpy's values, and copies from the CPU to another device."""

    def __init__(self):
        super().__init__()
        self.copies = copies = []

        class Dispatched(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                out = function(*args, **(kwargs or {}))
                from_cpu = any(isinstance(arg, torch.Tensor) and arg.is_cpu and arg.ndim for arg in args)
                if from_cpu and isinstance(out, torch.Tensor) and not out.is_cpu:
                    copies.append(function.overloadpacket.__name__)
                return out

        self._dispatched = Dispatched()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy):
            self.copies.append(function.__name__)
        return function(*args, **(kwargs or {}))

    def __enter__(self):
        self._dispatched.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._dispatched.__exit__(*error)


@pytest.mark.parametrize(
    "copy",
    [
        lambda: torch.tensor([1.0], device="meta"),
        lambda: torch.ones(3).to("meta"),
        lambda: torch.empty(3, device="meta").copy_(torch.ones(3)),
    ],
)
def test_host_to_device_copy_is_recorded(copy):
    with HostToDevice() as mode:
        copy()
    assert mode.copies


def test_second_measurement_on_another_device_copies_nothing_from_the_host():
    """The host waits for the device at each such copy, so element counts and rows are created once."""
    parameters = [torch.nn.Parameter(torch.empty(size, device="meta")) for size in ((3, 2), (4,), (3, 2))]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    statistics = stats.WeightStatistics(parameters)

    def measure():
        statistics.measure_gradients()
        statistics.keep_weights()
        rows, values = statistics.measure_updates()
        assert (rows, values.shape, values.device.type) == ([0, 1, 2], (3, len(STATISTICS)), "meta")

    with HostToDevice() as first:
        measure()
    with HostToDevice() as second:
        measure()
    assert first.copies
    assert second.copies == []


# --- logits --------------------------------------------------------------------------------------


def test_logit_std_equals_its_definition():
    torch.manual_seed(0)
    logits = torch.randn(7, 3)
    assert stats.logit_std(logits).item() == pytest.approx(logits.numpy().std(axis=0).mean(), rel=1e-6)
    assert stats.logit_std(logits.bfloat16()).dtype == torch.float32


def test_logit_std_of_one_text_is_nan():
    assert math.isnan(stats.logit_std(torch.ones(1, 3)).item())


# --- precision and modes -------------------------------------------------------------------------
# tests/training/test_precision.py has every flag of a product's precision


@pytest.fixture
def tf32():
    """TF32 as a run with train.precision=tf32 sets it."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    yield matmul
    matmul.fp32_precision = before


def test_eval_fp32_sets_modes_and_precision_in_the_body_and_restores_them(tf32):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
    model[0].eval()  # a module that its owner keeps in eval mode
    with torch.autocast("cpu", torch.bfloat16):
        with stats.eval_fp32(model):
            logits = model(torch.ones(1, 2))
            assert (logits.dtype, logits.requires_grad) == (torch.float32, False)
            assert not any(module.training for module in model.modules())
            assert tf32.fp32_precision == "ieee"
        assert model(torch.ones(1, 2)).dtype == torch.bfloat16
    assert [model.training, model[0].training, model[1].training] == [True, False, True]
    assert torch.is_grad_enabled()
    assert tf32.fp32_precision == "tf32"


def test_eval_fp32_whose_body_raises_restores_everything(tf32):
    model = torch.nn.Dropout(0.5)
    model.register_parameter("weight", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(ZeroDivisionError), stats.eval_fp32(model):
        raise ZeroDivisionError
    assert model.training
    assert torch.is_grad_enabled()
    assert tf32.fp32_precision == "tf32"
