"""The same sweep with every launcher, as a user starts it: real processes, with the results of the basic launcher."""

import json
import re
import signal
import sys

import pytest
import slurm
from conftest import TINY_OVERRIDES, completed, interrupt, results, wait_until
from fault_injection import FAILING_RUNS, read_runs
from omegaconf import OmegaConf

from bertmon.training import checkpoint

SWEEP = ["schedule.warmup_frac=0.1,0.7", "-m", "train.epochs=2", "monitor.figures=false"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """One thread per run everywhere: the same sums in the same order."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.slow
def test_sweep_is_the_same_with_every_launcher(bertmon, demo_files, tmp_path):
    launchers = ("basic", "joblib", "submitit_local", "ray")
    printed = {}
    for name in launchers:
        launch = bertmon(*SWEEP, *demo_files, f"hydra.sweep.dir={name}", f"hydra/launcher={name}")
        assert launch.returncode == 0, launch.stderr
        printed[name] = launch.stdout
    expected, report = read_runs(tmp_path / "basic"), stable_report(tmp_path / "basic")
    for name in launchers[1:]:
        folder = tmp_path / name
        assert read_runs(folder) == expected
        assert stable_report(folder) == report
        assert json.loads((folder / "sweep.json").read_text())["runs"] == list(expected)

        lines = printed[name].splitlines()
        assert lines[-2] == f"Report: {name}/report.html"
        assert lines[-1].endswith(f"-m bertmon tensorboard {name}")
        assert printed[name].count("Report: ") == 1  # only by the launching process
        lines += [line for path in (folder / ".submitit").rglob("*_log.out") for line in path.read_text().splitlines()]
        lines = [re.sub(r"^\x1b\[\d+m\(_run_job pid=\d+\)\x1b\[0m ", "", line) for line in lines]  # Ray's own
        for run in expected:
            assert any(line.startswith(f"{run}: 40 texts to train on") for line in lines)
        assert not [line for line in lines if line.startswith("step ")]


def stable_report(folder):
    """The report without the parts that differ between any two sweeps."""
    return re.sub(r"\d+ s\b|Written by .*|# .*|\| (Started|Command|Folder) .*", "", (folder / "report.md").read_text())


@pytest.mark.slow
def test_interrupted_joblib_sweep_leaves_checkpoints_and_resumes(bertmon, demo_files, tmp_path):
    long = ["schedule.warmup_frac=0.1,0.7", "-m", "train.epochs=20", "train.checkpoint_every=5", *demo_files]
    parallel = ["hydra.sweep.dir=parallel", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    assert bertmon(*long, "hydra.sweep.dir=plain").returncode == 0
    process = bertmon(*long, *parallel, wait=False)
    wait_until(lambda: list(tmp_path.glob(f"parallel/*/*/{checkpoint.CHECKPOINT_FILE}")), process)
    launch = interrupt(process, signal.SIGTERM)
    assert launch.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in launch.stdout + launch.stderr
    assert "bertmon resume parallel" in launch.stdout
    runs = results(tmp_path / "parallel").values()
    assert "interrupted" in {run["status"] for run in runs}
    assert "running" not in {run["status"] for run in runs}
    trained = sum(run["status"] == "interrupted" and run["steps"] > 0 for run in runs)  # one may not have begun yet
    assert len(list(tmp_path.glob(f"parallel/*/*/{checkpoint.CHECKPOINT_FILE}"))) == trained > 0

    launch = bertmon(*long, *parallel, "resume=parallel")
    assert launch.returncode == 0, launch.stderr
    assert "resuming at step" in launch.stdout
    assert read_runs(tmp_path / "parallel") == read_runs(tmp_path / "plain")


@pytest.mark.slow
def test_failed_parallel_run_prefixes_its_lines(bertmon, demo_files, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(FAILING_RUNS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = ["hydra/launcher=joblib", "hydra.sweep.dir=sweep"]
    launch = bertmon("schedule.warmup_frac=0.1,0.3,0.9", "-m", "monitor.figures=false", *demo_files, *options)
    assert launch.returncode == 1
    assert [result["status"] for result in results(tmp_path / "sweep").values()] == ["finished", "failed", "finished"]
    assert "\nwarmup_frac=0.3/seed=0: RuntimeError: the cat sat on the keyboard\n" in launch.stdout
    assert "\nTraceback" not in launch.stdout
    assert "failed: the cat sat on the keyboard" in launch.stderr
    assert "Traceback" not in launch.stderr


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.skipif(not slurm.INSTALLED, reason=f"Slurm is not installed, or this is not root: {slurm.INSTALL}")
def test_jobs_of_a_real_slurm_are_requeued_and_resume(tmp_path):
    with slurm.cluster(tmp_path / "slurm"):
        sweep = slurm.signalled(tmp_path / "sweep")
        sweep.end()
    plain = slurm.Sweep(tmp_path / "plain", epochs=sweep.epochs)
    plain.end()
    assert len(sweep.resumed()) == 2
    assert read_runs(sweep.folder) == read_runs(plain.folder)


SEARCH = [
    "-m",
    "hydra/sweeper=optuna",
    "hydra.sweeper.n_trials=3",
    "hydra.sweeper.seeds=[0,1]",
    "monitor.figures=false",
]


@pytest.mark.slow
def test_search_optimizes_the_mean_over_seeds_and_resumes(bertmon, demo_files, tmp_path):
    launch = bertmon(*SEARCH, *demo_files, "hydra.sweep.dir=search")
    assert launch.returncode == 0, launch.stderr
    runs = results(tmp_path / "search")
    assert len(runs) == 6
    values = {}
    for run in runs.values():
        point = (run["config"]["schedule"]["warmup_frac"], run["config"]["optimizer"]["lr"])
        assert run["config"]["monitor"]["on_doomed"] == "stop"
        values.setdefault(point, []).append(run["metrics"]["final"]["accuracy"])
    assert all(0 <= warmup <= 0.9 and 1e-4 <= lr <= 2e-3 for warmup, lr in values)
    best = OmegaConf.load(tmp_path / "search/optimization_results.yaml")
    assert best.best_value == pytest.approx(max(sum(each) / 2 for each in values.values()))
    warmup, lr = best.best_params["schedule.warmup_frac"], best.best_params["optimizer.lr"]
    assert sum(values[warmup, lr]) / 2 == best.best_value
    assert "warmup_frac  " in launch.stdout

    again = bertmon(*SEARCH, *demo_files, "hydra.sweep.dir=search")
    assert again.returncode == 1
    assert "search already contains a launch with runs: resume it with resume=search" in again.stderr
    resumed = bertmon(*SEARCH, *demo_files, "hydra.sweep.dir=search", "resume=search")
    assert resumed.returncode == 0
    assert resumed.stdout.count("already finished") == 6
    assert OmegaConf.load(tmp_path / "search/optimization_results.yaml") == best

    other = bertmon(*SEARCH, *demo_files, "hydra.sweep.dir=search", "resume=search", "train.epochs=2")
    assert other.returncode == 1
    assert "cannot resume with different settings: train.epochs was 3, now 2." in other.stderr
    with (tmp_path / "train.csv").open("a") as file:
        file.write("one more,sea\n")
    other = bertmon(*SEARCH, *demo_files, "hydra.sweep.dir=search", "resume=search")
    assert other.returncode == 1
    assert "the data has changed since this run started" in other.stderr


WRONG = [  # arguments, part of the message
    (
        [*SEARCH, "schedule.warmup_frac=interval(0.1,1.5)"],
        "expected a number from 0 to 1, got 1.5.",
    ),
    ([*SEARCH, "optimizer.lr=tag(log,interval(0,1))"], "optimizer.lr: expected a finite number above 0, got 0.0."),
    ([*SEARCH, "train.batch_size=choice(4,0)"], "train.batch_size: expected an integer of at least 1"),
    ([*SEARCH, "seed=3"], "seed: expected none with hydra.sweeper.seeds"),
    (
        [*SEARCH, "hydra.sweeper.seeds=[]"],
        "hydra.sweeper.seeds: expected a list of different seeds, got []",
    ),
    (
        [*SEARCH, "hydra.sweeper.seeds=5"],
        "hydra.sweeper.seeds: expected a list of different seeds, got 5",
    ),
    (
        [*SEARCH, "hydra.sweeper.n_trials=abc"],
        "of at least 1, got abc.",
    ),
    (
        [*SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=0"],
        "of at least 1, got 0.",
    ),
    ([*SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=x"], "Value 'x' of type 'str' could not be converted"),
    ([*SWEEP, "hydra/launcher=joblib", "device=cuda"], "device: expected "),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_invalid_launcher_settings_are_one_error(bertmon_here, demo_files, tmp_path, arguments, message):
    launch = bertmon_here("run", *demo_files, *arguments)
    assert launch.returncode == 1
    assert message in launch.stderr
    assert "Traceback" not in launch.stdout + launch.stderr
    assert not (tmp_path / "multirun").exists()


EXTRAS = {
    "hydra/launcher=joblib": "joblib",
    "hydra/launcher=submitit_local": "slurm",
    "hydra/launcher=submitit_slurm": "slurm",
    "hydra/launcher=ray": "ray",
    "hydra/sweeper=optuna": "optuna",
}


WITHOUT_PLUGINS = """
import contextlib, io, json, sys
sys.modules["hydra_plugins"] = None
from bertmon.run import main
ends = []
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:], errors, code = arguments, io.StringIO(), 0
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    ends.append((code, errors.getvalue()))
print(json.dumps(ends))
"""


def test_missing_plugin_is_one_error_and_everything_else_works(tmp_path, start_process):
    commands = [[*SWEEP, choice, *TINY_OVERRIDES] for choice in EXTRAS]
    others = [["--cfg", "all", "hydra/launcher=ray", "hydra/sweeper=optuna"], ["--help"]]
    command = [sys.executable, "-c", WITHOUT_PLUGINS, json.dumps([*commands, *others])]
    launch = completed(start_process(command))
    assert launch.returncode == 0, launch.stderr
    ends = json.loads(launch.stdout)
    for (choice, extra), end in zip(EXTRAS.items(), ends, strict=False):
        assert end == [f"{choice} is not installed: pip install 'bertmon[{extra}]' installs it.", ""]
    assert [code for code, _ in ends[len(EXTRAS) :]] == [0, 0]
    assert not (tmp_path / "multirun").exists()
