"""The registrations with Hydra, and the private parts of Hydra in use."""

import ast
import re
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import ValidationError

import bertmon
from bertmon.launch import compose, hydra_setup

ROOT = Path(bertmon.__file__).parents[1]
SOURCES = [*(ROOT / "bertmon").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")]


def test_private_parts_of_hydra_and_its_plugins_in_use_are_known():
    """Each can change in a new version: hydra-core is pinned below 1.4."""
    private = set()
    for path in SOURCES:
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
                private |= {(path.name, name) for name in names if re.match(r"(hydra|omegaconf)(\.\w+)*\._", name)}
        if re.search(r"\.(repo|class_name_to_class|_get_node|_is_none|_metadata)\b", text):
            private.add((path.name, "a private attribute"))
        if ".sweeper.launcher" in text:
            private.add((path.name, "OptunaSweeper.sweeper.launcher"))
    assert private == {
        ("api.py", "hydra._internal.callbacks"),  # only for mypy: the type of HydraContext.callbacks
        ("__init__.py", "OptunaSweeper.sweeper.launcher"),  # wrapped, so that a trial has several seeds
    }


def test_register_again_changes_nothing():
    hydra_setup.register()
    store = ConfigStore.instance()
    before = {path: OmegaConf.to_yaml(store.load(f"hydra/{path}.yaml").node) for path in hydra_setup.PLUGIN_EXTRAS}
    hydra_setup.register()
    assert before == {path: OmegaConf.to_yaml(store.load(f"hydra/{path}.yaml").node) for path in before}


def test_presets_keep_the_types_of_their_plugins():
    hydra_setup.register()
    joblib = ConfigStore.instance().load("hydra/launcher/joblib.yaml").node
    assert (joblib.batch_size, joblib.prefer) == ("1", "processes")
    with pytest.raises(ValidationError):
        joblib.n_jobs = "x"


def test_sweeps_name_their_runs_by_hydras_own_setting(files):
    from hydra import compose as compose_hydra
    from hydra import initialize_config_module

    hydra_setup.register()
    overrides = ["schedule.warmup_frac=0.1,0.7", "seed=1,2", "hydra.mode=MULTIRUN", *files]
    with initialize_config_module("bertmon.conf", version_base="1.3", job_name="run"):
        config = compose_hydra("config", [word for word in overrides if "," not in word], return_hydra_config=True)
        with_sweeps = compose.with_overrides(config.copy(), overrides[:2], ())
        before = OmegaConf.to_yaml(with_sweeps)
        launch = compose.compose_runs(with_sweeps)
        assert OmegaConf.to_yaml(with_sweeps) == before  # unchanged
    assert config.hydra.mode == RunMode.MULTIRUN
    assert launch.swept == ["schedule.warmup_frac", "seed"]
    assert launch.task_overrides == ["experiment=quickstart"]
    (exclude,) = launch.hydra_overrides
    assert exclude.startswith("hydra.job.config.override_dirname.exclude_keys=[")
    names = [str(run.run_dir).split("/", 2)[2] for run in launch.runs]
    assert names == [f"warmup_frac={frac}/seed={seed}" for frac in (0.1, 0.7) for seed in (1, 2)]
    assert len({str(run.run_dir).split("/")[1] for run in launch.runs}) == 1  # all are named by the same time


def test_auto_experiment_without_a_driver_needs_no_torch(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(hydra_setup.ctypes, "CDLL", missing)
    monkeypatch.setattr(hydra_setup.os.path, "exists", lambda path: False)
    assert hydra_setup.auto_experiment() == "quickstart"


def test_auto_experiment_uses_torch_on_a_machine_with_a_driver(monkeypatch):
    import torch

    monkeypatch.setattr(hydra_setup.ctypes, "CDLL", lambda name: None)
    for available, experiment in ((True, "article"), (False, "quickstart")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert hydra_setup.auto_experiment() == experiment


def test_run_name_of_a_single_run_is_its_name_or_its_experiment():
    overrides = ["optimizer.lr=1", "seed=3"]
    assert hydra_setup.run_name("RunMode.RUN", overrides, [], None, "quickstart") == "quickstart"
    assert hydra_setup.run_name("RunMode.RUN", overrides, [], "mine", "quickstart") == "mine"
    assert hydra_setup.run_name("RunMode.MULTIRUN", overrides, [], "mine", "quickstart") == "lr=1"


def test_sweep_dir_ends_with_the_name():
    assert hydra_setup.sweep_dir(None, "now") == "multirun/now"
    assert hydra_setup.sweep_dir(None, "now", "mine") == "multirun/now_mine"
    assert hydra_setup.sweep_dir("multirun/then", "now", "mine") == "multirun/then"
