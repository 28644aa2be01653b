"""A run that fails leaves its memory to the next runs of its sweep: on a GPU the usual failure is a lack of it."""

import weakref

import pytest
import torch

from bertmon.training import run_training


@pytest.mark.parametrize("keep", [False, True])  # the control: an error that is kept keeps the model
def test_a_run_that_fails_keeps_no_memory_from_the_next_one(bertmon_here, files, monkeypatch, keep):
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
    done = bertmon_here("run", "-m", "experiment=custom", "seed=0,1", "train.epochs=1", *files)
    assert alive == [0, int(keep)], done.stdout + done.stderr
    assert done.returncode == 1
    assert "CUDA out of memory. Planted." in done.stdout + done.stderr
