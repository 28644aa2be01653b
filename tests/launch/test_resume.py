"""`bertmon resume`, and concurrent launches in one folder."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import TIMEOUT, completed, write_run
from fault_injection import RunContent

from bertmon.errors import InputError
from bertmon.launch import run_dirs
from bertmon.launch.compose import load_config
from bertmon.result import SWEEP_FILE

NO_FIGURES = ["monitor.figures=false"]  # their process takes seconds to start
FIRST, SECOND = "warmup_frac=0.1/seed=0", "warmup_frac=0.7/seed=0"


@pytest.mark.slow
def test_resume_command_finishes_a_sweep_and_refuses_other_folders(bertmon, start_warm, demo_files, tmp_path):
    sweep = tmp_path / "sweep"
    command = [
        "schedule.warmup_frac=0.1,0.7",
        "-m",
        "train.epochs=2",
        "hydra.sweep.dir=sweep",
        *NO_FIGURES,
        *demo_files,
    ]
    assert bertmon(*command).returncode == 0
    expected = RunContent.read(sweep / SECOND)
    shutil.rmtree(sweep / SECOND)  # as if it had never started
    first = (sweep / FIRST / "result.json").stat().st_mtime_ns

    def resume(*folders):
        arguments = ["resume", *map(str, folders)]
        return completed(start_warm("bertmon", *arguments, cwd=Path("/"), cache=str(tmp_path / "cache")))

    process = resume(sweep)
    assert process.returncode == 0, process.stderr
    assert f"{FIRST}: already finished (finished, " in process.stdout
    assert RunContent.read(sweep / SECOND) == expected
    assert (sweep / FIRST / "result.json").stat().st_mtime_ns == first

    elsewhere = resume(tmp_path)
    assert elsewhere.returncode != 0
    assert str(tmp_path) in elsewhere.stderr
    assert SWEEP_FILE in elsewhere.stderr
    assert "Traceback" not in elsewhere.stderr
    assert "usage: bertmon resume" in resume().stderr
    plan = json.loads((sweep / SWEEP_FILE).read_text())
    (sweep / SWEEP_FILE).write_text(json.dumps(plan | {"directory": "/nowhere"}))
    moved = resume(sweep)
    assert moved.returncode != 0
    assert "/nowhere" in moved.stderr
    assert "Traceback" not in moved.stderr


@pytest.mark.slow
def test_concurrent_launches_of_the_same_runs_do_not_share_them(bertmon, demo_files, tmp_path):
    command = [
        "schedule.warmup_frac=0.1,0.7",
        "-m",
        "train.epochs=1",
        "hydra.sweep.dir=sweep",
        *NO_FIGURES,
        *demo_files,
    ]
    launches = [bertmon(*command, wait=False) for _ in range(2)]
    errors = [process.communicate(timeout=TIMEOUT)[1] for process in launches]
    codes = [process.returncode for process in launches]
    assert sorted(codes) == [0, 1]
    refused = errors[codes.index(1)]
    assert refused.count("\n") == 1
    assert FIRST in refused
    assert "resume=sweep" in refused
    statuses = [json.loads(path.read_text())["status"] for path in (tmp_path / "sweep").rglob("result.json")]
    assert statuses == ["finished", "finished"]
    joining = bertmon("schedule.warmup_frac=0.3,0.5", *command[1:])  # other runs may join
    assert joining.returncode == 0
    plan = json.loads((tmp_path / "sweep" / SWEEP_FILE).read_text())
    assert plan["runs"] == [f"warmup_frac={warmup}/seed=0" for warmup in (0.1, 0.7, 0.3, 0.5)]


def test_search_resumes_with_the_same_fixed_settings_and_data_only(tmp_path):
    config = load_config(["experiment=quickstart", "optimizer.lr=3e-4"])
    swept = ("optimizer.lr", "seed", "model")
    other = load_config(["experiment=quickstart", "optimizer.lr=1e-4", "seed=5", "model=bert_small"])
    write_run(tmp_path / "trial" / "seed=5", config=asdict(other))
    run_dirs.check_same_search(tmp_path, config, swept, "f")
    run_dirs.check_same_search(tmp_path, config, ("experiment",), "f")
    with pytest.raises(InputError, match=r"trial/seed=5: the data has changed since this run started"):
        run_dirs.check_same_search(tmp_path, config, swept, "g")
    run_dirs.check_same_search(tmp_path, config, (*swept, "data.max_length"), "g")
    with pytest.raises(InputError, match=r"trial/seed=5: .* optimizer\.lr was 0\.0001, now 0\.0003\."):
        run_dirs.check_same_search(tmp_path, config, ("seed", "model"), "f")
