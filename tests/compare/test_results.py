"""Reading a sweep and grouping its runs."""

import json
import math
from pathlib import Path

import pytest
from conftest import DEAD, comparison, write_run

from bertmon.compare import results
from bertmon.compare.results import read_sweep
from bertmon.compare.summary import conclusions
from bertmon.errors import InputError
from bertmon.metrics import EvalResult, did_not_learn, texts_needed
from bertmon.monitor.diagnosis import Verdict
from bertmon.monitor.history import HISTORY_FILE

VERSION_0_1 = Path(__file__).parent / "version_0_1"


def test_read_sweep_groups_runs_that_differ_only_in_their_seed(tmp_path):
    sweep = read_sweep([comparison(tmp_path)])
    assert sweep.swept == ["schedule.warmup_frac"]
    assert [(setting.name, [run.seed for run in setting.runs]) for setting in sweep.settings] == [
        ("warmup_frac=0.1", [0, 1]),
        ("warmup_frac=0.7", [0, 1]),
    ]
    assert [[run.did_not_learn for run in setting.runs] for setting in sweep.settings] == [[True, True], [False, False]]
    assert [run.flagged_step for run in sweep.runs] == [20, 20, None, None]


def test_read_sweep_assigns_runs_without_a_config_to_their_settings(tmp_path):
    comparison(tmp_path, seeds=1)
    names = [f"warmup_frac={warmup}/seed={seed}" for warmup in (0.1, 0.7) for seed in (0, 1)]
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": names}))
    early = tmp_path / "warmup_frac=0.7/seed=1"
    early.mkdir()
    (early / "result.json").write_text(json.dumps({"status": "running"}))
    assert [(setting.name, [run.status for run in setting.runs]) for setting in read_sweep([tmp_path]).settings] == [
        ("warmup_frac=0.1", ["finished", "not started"]),
        ("warmup_frac=0.7", ["finished", "interrupted"]),  # no process works on it
    ]


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "\x00\xff"])
def test_read_sweep_of_a_corrupt_result_marks_that_run_unreadable(tmp_path, content):
    comparison(tmp_path, seeds=1)
    corrupt = tmp_path / "warmup_frac=0.7/seed=1"
    corrupt.mkdir()
    (corrupt / "result.json").write_text(content, encoding="latin-1")
    statuses = {run.name: run.status for run in read_sweep([tmp_path]).runs}
    assert statuses == {
        "warmup_frac=0.1/seed=0": "finished",
        "warmup_frac=0.7/seed=0": "finished",
        "warmup_frac=0.7/seed=1": "unreadable",
    }


WRONG = [  # changes that make the result.json of a finished run invalid
    {"evaluations": "x"},
    {"evaluations": [1]},
    {"evaluations": [{"loss": 1.0, "accuracy": 0.5}]},
    {"evaluations": [{"step": 1, "loss": 1.0, "accuracy": "high"}]},
    {"evaluations": []},
    {"seed": "x"},
    {"config": "none"},
    {"data": None},
    {"data": {"fingerprint": "", "majority_share": 0.25, "test_texts": 0}},
    {"verdict_step": None},
    {"verdict_step": "x"},
    {"verdict": "splendid"},
    {"steps": 101},
    {"timings": "fast"},
    {"cause": "\ud800"},
    {"status": 3},
]


@pytest.mark.parametrize("changes", WRONG, ids=str)
def test_read_sweep_of_a_wrong_shape_marks_that_run_unreadable(tmp_path, changes):
    comparison(tmp_path, seeds=1)
    write_run(tmp_path / "warmup_frac=0.7/seed=1", **{"seed": 1, **changes})
    sweep = read_sweep([tmp_path])
    assert [run.name for run in sweep.runs if run.status == "unreadable"] == ["warmup_frac=0.7/seed=1"]
    assert [len(setting.ended) for setting in sweep.settings] == [1, 1]


@pytest.mark.parametrize("content", [b"", b"PK", DEAD[: len(DEAD) // 2], b"\x93NUMPY"])
def test_run_with_a_corrupt_history_has_none_and_logs_that_once(tmp_path, content, caplog):
    write_run(tmp_path / "a/seed=0")
    (tmp_path / "a/seed=0" / HISTORY_FILE).write_bytes(content)
    (run,) = read_sweep([tmp_path]).runs
    assert run.history is None
    assert run.history is None
    assert math.isnan(run.peak_effective_lr)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("this run has no curves")


def test_history_is_read_once(tmp_path):
    write_run(tmp_path / "a/seed=0")
    (run,) = read_sweep([tmp_path]).runs
    first = run.history
    (tmp_path / "a/seed=0" / HISTORY_FILE).unlink()
    assert first is not None
    assert run.history is first


def test_peak_effective_lr_comes_from_the_plan(tmp_path):
    write_run(tmp_path / "a/seed=0")
    write_run(tmp_path / "b/seed=0", measured=False)
    peaks = [run.peak_effective_lr for run in read_sweep([tmp_path]).runs]
    assert peaks[0] == 2e-3
    assert math.isnan(peaks[1])


def test_peak_effective_lr_does_not_unpack_a_zip_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "_MAX_PLAN_BYTES", 1000)
    write_run(tmp_path / "a/seed=0")
    (run,) = read_sweep([tmp_path]).runs
    assert math.isnan(run.peak_effective_lr)


def test_read_sweep_of_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected a run, but there is no result\.json in it or below it"):
        read_sweep([tmp_path])
    with pytest.raises(InputError, match="nowhere: expected the folder of a sweep"):
        read_sweep([tmp_path / "nowhere"])


def test_read_sweep_of_two_sweeps_joins_equal_settings(tmp_path):
    for name in ("monday", "tuesday"):
        comparison(tmp_path / name, seeds=1)
    sweep = read_sweep([tmp_path / "monday", tmp_path / "tuesday"])
    assert [run.name for run in sweep.runs] == [
        "monday/warmup_frac=0.1/seed=0",
        "tuesday/warmup_frac=0.1/seed=0",
        "monday/warmup_frac=0.7/seed=0",
        "tuesday/warmup_frac=0.7/seed=0",
    ]
    assert [len(setting.runs) for setting in sweep.settings] == [2, 2]


def test_read_sweep_of_two_sweeps_names_every_key_that_differs(tmp_path):
    deep, fast = ({"model": {"num_hidden_layers": 8}}, {"optimizer": {"lr": 3e-3}})
    for name, config in (("monday", deep), ("tuesday", fast)):
        for warmup in (0.1, 0.7):
            schedule = {"schedule": {"warmup_frac": warmup}}
            overrides = {"schedule.warmup_frac": warmup} | ({"model": "bert_small_8l"} if config is deep else {})
            write_run(tmp_path / name / f"{warmup}/seed=0", overrides=overrides, config=config | schedule)
    sweep = read_sweep([tmp_path / "monday", tmp_path / "tuesday"])
    assert sweep.swept == ["schedule.warmup_frac", "model.num_hidden_layers", "optimizer.lr"]
    assert [setting.name for setting in sweep.settings] == [
        "warmup_frac=0.1, num_hidden_layers=8, lr=1e-3",
        "warmup_frac=0.7, num_hidden_layers=8, lr=1e-3",
        "warmup_frac=0.1, num_hidden_layers=null, lr=3e-3",
        "warmup_frac=0.7, num_hidden_layers=null, lr=3e-3",
    ]


def test_read_sweep_of_a_swept_group_does_not_list_its_keys(tmp_path):
    for name, depth in (("bert_small", 6), ("bert_small_8l", 8)):
        config = {"model": {"num_hidden_layers": depth}}
        write_run(tmp_path / f"model={name}/seed=0", overrides={"model": name}, config=config)
    assert read_sweep([tmp_path]).swept == ["model"]


@pytest.mark.parametrize("content", ['{"runs": null}', '{"runs": [1]}', "[]", "{", "\x00"])
def test_read_sweep_of_a_corrupt_sweep_file_reads_the_runs(tmp_path, content):
    comparison(tmp_path, seeds=1)
    (tmp_path / "sweep.json").write_text(content)
    assert len(read_sweep([tmp_path]).runs) == 2


def test_read_sweep_of_different_configs_in_one_folder_is_two_settings(tmp_path):
    for number, learns in enumerate([True, False]):
        write_run(tmp_path / f"runs/{number}", learns=learns, config={"optimizer": {"lr": number}})
    sweep = read_sweep([tmp_path / "runs"])
    assert [(setting.name, len(setting.runs)) for setting in sweep.settings] == [("lr=0", 1), ("lr=1", 1)]


def test_read_sweep_of_different_texts_is_two_settings(tmp_path):
    for seed in range(2):
        data = {"fingerprint": str(seed), "test_texts": 400, "majority_share": 0.25}
        write_run(tmp_path / f"a/seed={seed}", seed=seed, data=data)
    assert [len(setting.runs) for setting in read_sweep([tmp_path]).settings] == [1, 1]


@pytest.mark.parametrize("key", ["seed", "device", "cache_dir", "cache", "experiment", "resume"])
def test_read_sweep_ignores_keys_that_do_not_affect_results(tmp_path, key):
    for seed in range(2):
        write_run(tmp_path / f"{seed}/x", seed=seed, config={key: str(seed), "optimizer": {"lr": 1}})
    assert len(read_sweep([tmp_path]).settings) == 1


def test_read_sweep_of_a_folder_twice_counts_each_run_once(tmp_path):
    comparison(tmp_path / "sweep")
    folders = [tmp_path / "sweep", tmp_path / "sweep", tmp_path / "sweep/warmup_frac=0.1"]
    assert len(read_sweep(folders).runs) == 4


def test_setting_names_have_short_keys_and_the_last_part_of_paths(tmp_path):
    for name in ("a", "b"):
        overrides = {"data.train": f"data/{name}.csv", "schedule.lr": 1, "optimizer.lr": 2e-4}
        write_run(tmp_path / f"train=data-{name}-1a2b3c/seed=0", overrides=overrides)
    names = [setting.name for setting in read_sweep([tmp_path]).settings]
    assert names == [f"train={name}.csv, schedule.lr=1, optimizer.lr=2e-4" for name in ("a", "b")]


def test_setting_names_have_full_paths_if_the_last_parts_are_equal(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / f"{name}/seed=0", overrides={"data.train": f"{name}/train.csv"})
    sweep = read_sweep([tmp_path])
    assert [setting.name for setting in sweep.settings] == ["train=a/train.csv", "train=b/train.csv"]
    assert [sweep.label("data.train", setting.values["data.train"]) for setting in sweep.settings] == [
        "a/train.csv",
        "b/train.csv",
    ]


def test_run_did_not_learn_if_it_is_indistinguishable_from_guessing(tmp_path):
    for seed, accuracy in enumerate([0.25, 123 / 400, 124 / 400, 0.9]):  # 123: 99.5 % quantile of Binomial(400, 1/4)
        write_run(tmp_path / f"a/seed={seed}", accuracy=accuracy, seed=seed)
    write_run(tmp_path / "a/seed=9", seed=9, status="failed", error="RuntimeError: no\nmore")
    (setting,) = read_sweep([tmp_path]).settings
    assert [run.did_not_learn for run in setting.runs] == [True, True, False, False, None]


def test_texts_needed_is_the_smallest_number_that_tells_halfway_from_guessing():
    for share in (0.25, 0.5, 0.9):
        needed, halfway = texts_needed(share), (1 + share) / 2
        evaluation = EvalResult(0, 1.0, halfway)
        assert not did_not_learn(evaluation, share, needed)
        assert all(did_not_learn(evaluation, share, n) for n in range(1, needed))


def test_min_test_texts_is_for_the_smallest_test_set(tmp_path):
    data = {"fingerprint": "f", "majority_share": 0.5}
    for texts in (10, 8, 400):
        write_run(tmp_path / f"{texts}/seed=0", data=data | {"test_texts": texts})
    assert read_sweep([tmp_path]).min_test_texts == (8, 26)
    assert read_sweep([tmp_path / "400"]).min_test_texts is None


def test_read_sweep_of_version_0_1_reads_everything():
    sweep = read_sweep([VERSION_0_1])
    assert sweep.swept == ["schedule.warmup_frac"]
    assert [(setting.name, [run.seed for run in setting.runs]) for setting in sweep.settings] == [
        ("warmup_frac=0.1", [0, None]),
        ("warmup_frac=0.7", [0]),
    ]
    assert [run.status for run in sweep.runs] == ["finished", "not started", "finished"]
    dead, _, learned = sweep.runs
    assert (dead.did_not_learn, dead.verdict, dead.flagged_step) == (True, Verdict.collapsed, 60)
    assert (learned.did_not_learn, learned.verdict, learned.flagged_step) == (False, Verdict.healthy, None)
    assert dead.result.diagnosis.findings[0].signal == "depth_ratio"
    assert dead.values["train.max_grad_norm"] == 1.0
    assert dead.values.keys() >= {"schedule.decay", "monitor.thresholds.min_logit_std", "monitor.include_biases"}
    assert dead.peak_effective_lr == pytest.approx(2.128e-3, rel=1e-3)
    assert [len(run.history.snapshots) for run in (dead, learned)] == [23, 23]
    assert learned.history.snapshots[0].signals["logit_std"] > 0


def test_setting_sort_key_is_the_mean_objective_on_the_validation_texts(tmp_path):
    for name, test, validation in (("a", 0.9, 0.5), ("b", 0.6, 0.7)):
        validations = [{"step": 100, "loss": 1.0, "accuracy": validation, "mcc": validation - 0.1}]
        for seed in (0, 1):
            overrides = {"optimizer.lr": 1e-3 if name == "a" else 1e-4}
            write_run(
                tmp_path / name / f"seed={seed}",
                accuracy=test,
                seed=seed,
                overrides=overrides,
                validations=validations,
                metric="mcc",
            )
    sweep = read_sweep([tmp_path])
    assert [setting.sort_key() for setting in sweep.settings] == pytest.approx([0.4, 0.6])
    assert {setting.criterion for setting in sweep.settings} == {"Matthews correlation on the validation texts"}
    assert conclusions(sweep)[0].startswith("Best by Matthews correlation on the validation texts: lr=1e-4")


def test_run_that_ends_while_it_is_read_is_finished(tmp_path, monkeypatch):
    run_dir = write_run(tmp_path / "a/seed=0", status="running")

    def ends(path):
        result = json.loads((path / "result.json").read_text())
        (path / "result.json").write_text(json.dumps(result | {"status": "finished"}))
        return False

    monkeypatch.setattr(results, "is_running", ends)
    (run,) = read_sweep([tmp_path]).runs
    assert (run.run_dir, run.status, run.result.error) == (run_dir, "finished", None)
