"""The same sweep by every launcher, as a user starts it: real processes, the same result as plainly."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import slurm
from conftest import TINY_OVERRIDES, results
from fault_injection import FAILING_RUNS, read_runs
from omegaconf import OmegaConf

from bertmon.training import checkpoint

SWEEP = ["schedule.warmup_frac=0.1,0.7", "-m", "train.epochs=2"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """As many threads a run everywhere: the same sums in the same order."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_sweep_is_the_same_by_every_launcher(bertmon, files, tmp_path):
    launchers = ("basic", "joblib", "submitit_local", "ray")
    told = {}
    for name in launchers:
        done = bertmon(*SWEEP, *files, f"hydra.sweep.dir={name}", f"hydra/launcher={name}")
        assert done.returncode == 0, done.stderr
        told[name] = done.stdout
    whole, report = read_runs(tmp_path / "basic"), shown(tmp_path / "basic")
    for name in launchers[1:]:
        folder = tmp_path / name
        assert read_runs(folder) == whole
        assert shown(folder) == report
        assert json.loads((folder / "sweep.json").read_text())["runs"] == list(whole)

        lines = told[name].splitlines()
        assert lines[-2:] == [
            f"Report: {name}/report.html",
            f"To see it: tensorboard --logdir {name} --samples_per_plugin images=100",
        ]
        assert told[name].count("Report: ") == 1  # the launching process alone says it
        lines += [line for path in (folder / ".submitit").rglob("*_log.out") for line in path.read_text().splitlines()]
        lines = [re.sub(r"^\x1b\[\d+m\(_run_job pid=\d+\)\x1b\[0m ", "", line) for line in lines]  # Ray's own
        for run in whole:
            assert any(line.startswith(f"{run}: 40 texts to train on") for line in lines)
        assert not [line for line in lines if line.startswith("step ")]


def shown(folder):
    """The report, without what no two sweeps have in common."""
    return re.sub(r"\d+ s\b|Written by .*|^# .*", "", (folder / "report.md").read_text())


def test_a_sweep_on_joblib_leaves_checkpoints_and_goes_on(bertmon, files, tmp_path):
    long = ["schedule.warmup_frac=0.1,0.7", "-m", "train.epochs=20", "train.checkpoint_every=5", *files]
    beside = ["hydra.sweep.dir=beside", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    assert bertmon(*long, "hydra.sweep.dir=plain").returncode == 0
    running = bertmon(*long, *beside, wait=False)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(f"beside/*/*/{checkpoint.CHECKPOINT_FILE}")):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    output, errors = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in output + errors
    statuses = [run["status"] for run in results(tmp_path / "beside").values()]
    assert "interrupted" in statuses
    assert "running" not in statuses
    assert len(list(tmp_path.glob(f"beside/*/*/{checkpoint.CHECKPOINT_FILE}"))) == statuses.count("interrupted")

    done = bertmon(*long, *beside, "resume=beside")
    assert done.returncode == 0, done.stderr
    assert "goes on at step" in done.stdout
    assert read_runs(tmp_path / "beside") == read_runs(tmp_path / "plain")


def test_a_run_that_fails_beside_others_names_its_lines(bertmon, files, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(FAILING_RUNS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    chosen = ["hydra/launcher=joblib", "hydra.sweep.dir=sweep"]
    done = bertmon("schedule.warmup_frac=0.1,0.3,0.9", "-m", *files, *chosen)
    assert done.returncode == 1
    assert [result["status"] for result in results(tmp_path / "sweep").values()] == ["ok", "failed", "ok"]
    assert "\nwarmup_frac=0.3/seed=0: RuntimeError: the cat sat on the keyboard\n" in done.stdout
    assert "\nTraceback" not in done.stdout
    assert "failed: the cat sat on the keyboard" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slurm
@pytest.mark.skipif(not slurm.INSTALLED, reason=f"Slurm is not installed, or this is not root: {slurm.INSTALL}")
def test_jobs_on_a_real_slurm_are_queued_again_and_go_on(tmp_path):
    with slurm.cluster(tmp_path / "slurm"):
        sweep = slurm.signalled(tmp_path / "sweep")
        sweep.end()
    plain = slurm.Sweep(tmp_path / "plain", epochs=sweep.epochs)
    plain.end()
    assert len(sweep.went_on()) == 2
    assert read_runs(sweep.folder) == read_runs(plain.folder)


SEARCH = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.seeds=[0,1]"]


def test_a_search_is_told_the_mean_over_seeds_and_can_be_gone_on_with(bertmon, files, tmp_path):
    done = bertmon(*SEARCH, *files, "hydra.sweep.dir=search")
    assert done.returncode == 0, done.stderr
    runs = results(tmp_path / "search")
    assert len(runs) == 6
    values = {}
    for run in runs.values():
        point = (run["settings"]["schedule"]["warmup_frac"], run["settings"]["optimizer"]["lr"])
        assert run["settings"]["monitor"]["on_doomed"] == "stop"
        values.setdefault(point, []).append(run["metrics"]["final"]["accuracy"])
    assert all(0 <= warmup <= 0.9 and 1e-4 <= lr <= 2e-3 for warmup, lr in values)
    best = OmegaConf.load(tmp_path / "search/optimization_results.yaml")
    assert best.best_value == pytest.approx(max(sum(each) / 2 for each in values.values()))
    warmup, lr = best.best_params["schedule.warmup_frac"], best.best_params["optimizer.lr"]
    assert sum(values[warmup, lr]) / 2 == best.best_value
    assert "warmup_frac  " in done.stdout

    again = bertmon(*SEARCH, *files, "hydra.sweep.dir=search")
    assert again.returncode == 1
    assert "search holds a launch with runs already: go on with it by resume=search" in again.stderr
    gone_on = bertmon(*SEARCH, *files, "hydra.sweep.dir=search", "resume=search")
    assert gone_on.returncode == 0
    assert gone_on.stdout.count("has ended before") == 6
    assert OmegaConf.load(tmp_path / "search/optimization_results.yaml") == best


WRONG = [  # arguments, what the message says
    ([*SEARCH, "schedule.warmup_frac=interval(0.1,1.5)"], "schedule.warmup_frac=1.5 is not possible"),
    ([*SEARCH, "optimizer.lr=tag(log,interval(0,1))"], "optimizer.lr=0.0 is not possible"),
    ([*SEARCH, "train.batch_size=choice(4,0)"], "train.batch_size=0 is not possible"),
    ([*SEARCH, "seed=3"], "seed is not possible beside hydra.sweeper.seeds"),
    ([*SEARCH, "hydra.sweeper.n_trials=abc"], "hydra.sweeper.n_trials=abc is not possible"),
    ([*SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs=0 is not possible"),
    ([*SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=x"], "Value 'x' of type 'str' could not be converted"),
    ([*SWEEP, "hydra/launcher=joblib", "device=cuda"], "device=cuda is not possible: this machine has cpu"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_what_is_wrong_with_a_launcher_is_one_message(bertmon, files, tmp_path, arguments, message):
    done = bertmon(*files, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "multirun").exists()


EXTRAS = {
    "hydra/launcher=joblib": "joblib",
    "hydra/launcher=submitit_local": "slurm",
    "hydra/launcher=submitit_slurm": "slurm",
    "hydra/launcher=ray": "ray",
    "hydra/sweeper=optuna": "optuna",
}


def test_a_plugin_that_is_not_installed_is_one_message_and_all_else_works(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['hydra_plugins'] = None\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def bertmon(*arguments):
        command = [sys.executable, "-m", "bertmon.run", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    for choice, extra in EXTRAS.items():
        done = bertmon(*SWEEP, choice, *TINY_OVERRIDES)
        assert done.stderr == f"{choice} is not installed: pip install 'bertmon[{extra}]' brings it.\n"
        assert done.returncode == 1
    assert bertmon("--help").returncode == 0
    assert bertmon("--cfg", "all", "hydra/launcher=ray", "hydra/sweeper=optuna").returncode == 0
    assert not (tmp_path / "multirun").exists()
