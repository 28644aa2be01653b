"""A run that fails leaves its memory to the next runs of its sweep: on a GPU the usual failure is a lack of it."""

import sys

import pytest
from conftest import completed

SWEEP = """
import sys, weakref
import torch
from bertmon import run
from bertmon.training import run_training

models, errors = [], []
build_task = run_training.build_task

def build(config, device):
    print("alive:", sum(model() is not None for model in models), flush=True)
    task = build_task(config, device)
    models.append(weakref.ref(task.classifier))
    if config.seed == 0:
        task.classifier.classifier.register_forward_pre_hook(fail)
    return task

def fail(module, inputs):
    error = torch.OutOfMemoryError("CUDA out of memory. Planted.")
    if KEEP:
        errors.append(error)
    raise error

run_training.build_task = build
run.main()
"""


@pytest.mark.parametrize("keep", [False, True])  # the control: an error that is kept keeps the model
def test_a_run_that_fails_keeps_no_memory_from_the_next_one(start_process, files, keep):
    code = f"KEEP = {keep}\n{SWEEP}"
    done = completed(
        start_process([sys.executable, "-c", code, "-m", "experiment=custom", "seed=0,1", "train.epochs=1", *files])
    )
    alive = [line for line in done.stdout.splitlines() if line.startswith("alive:")]
    assert alive == ["alive: 0", f"alive: {int(keep)}"], done.stdout + done.stderr
    assert done.returncode == 1
    assert "CUDA out of memory. Planted." in done.stdout + done.stderr
