"""A failed run frees its memory for the next runs of the sweep; on a GPU, runs usually fail for lack of memory."""

import weakref

import pytest
import torch

from bertmon.training import run_training


@pytest.mark.parametrize("keep", [False, True])  # the control: a stored error keeps the model alive
def test_failed_run_frees_its_memory_for_the_next_one(bertmon_here, files, monkeypatch, keep):
    models, alive, errors = [], [], []
    build_task = run_training.build_task

    def fail(module, inputs):
        error = torch.OutOfMemoryError("CUDA out of memory. Planted.")
        if keep:
            errors.append(error)
        raise error

    def build(config, device):
        alive.append(sum(model() is not None for model in models))
        task = build_task(config, device)
        models.append(weakref.ref(task.classifier))
        if config.seed == 0:
            task.classifier.classifier.register_forward_pre_hook(fail)
        return task

    monkeypatch.setattr(run_training, "build_task", build)
    process = bertmon_here("run", "-m", "experiment=custom", "seed=0,1", "train.epochs=1", *files)
    assert alive == [0, int(keep)], process.stdout + process.stderr
    assert process.returncode == 1
    assert "CUDA out of memory. Planted." in process.stdout + process.stderr
