import pytest
from conftest import leave_run

from bertmon.compare.best_model import BEST_LINK, link_best_model
from bertmon.compare.results import read_sweep


def sweep_of_four(folder, *, keep="best", **last):
    """Two settings of two seeds, whose models are saved; that of warm-up 0.3 is the better one."""
    for warmup, accuracies in ((0.1, (0.95, 0.5)), (0.3, (0.8, 0.85))):
        for seed, accuracy in enumerate(accuracies):
            run_dir = leave_run(
                folder / f"warmup_frac={warmup}/seed={seed}",
                accuracy=accuracy,
                seed=seed,
                overrides={"schedule.warmup_frac": warmup, "train.keep": keep, "train.save_model": "best"},
                model_dir="model",
                **(last if (warmup, seed) == (0.3, 1) else {}),
            )
            (run_dir / "model").mkdir()
    return folder


def saved(folder):
    return sorted(str(path.parent.relative_to(folder)) for path in folder.glob("*/*/model"))


def test_link_best_model_leads_to_the_best_run_of_the_best_setting(tmp_path):
    best = link_best_model(read_sweep([sweep_of_four(tmp_path)]), tmp_path)
    assert best == tmp_path / "warmup_frac=0.3/seed=1"
    assert (tmp_path / BEST_LINK).samefile(best / "model")
    assert saved(tmp_path) == ["warmup_frac=0.3/seed=0", "warmup_frac=0.3/seed=1"]


def test_link_best_model_with_keep_all_deletes_no_model(tmp_path):
    link_best_model(read_sweep([sweep_of_four(tmp_path, keep="all")]), tmp_path)
    assert len(saved(tmp_path)) == 4


@pytest.mark.parametrize("status", ["running", "interrupted"])
def test_link_best_model_of_a_sweep_with_runs_left_deletes_no_model(tmp_path, status):
    link_best_model(read_sweep([sweep_of_four(tmp_path, status=status)]), tmp_path)
    assert (tmp_path / BEST_LINK).resolve() == (tmp_path / "warmup_frac=0.3/seed=0/model").resolve()
    assert len(saved(tmp_path)) == 4


def test_link_best_model_again_moves_the_link(tmp_path):
    sweep_of_four(tmp_path, keep="all")
    link_best_model(read_sweep([tmp_path]), tmp_path)
    better = leave_run(
        tmp_path / "warmup_frac=0.5/seed=0",
        accuracy=0.99,
        overrides={"schedule.warmup_frac": 0.5, "train.save_model": "best"},
        model_dir="model",
    )
    assert link_best_model(read_sweep([tmp_path]), tmp_path) == better
    assert (tmp_path / BEST_LINK).resolve() == (better / "model").resolve()


def test_link_best_model_without_a_saved_model_makes_no_link(tmp_path):
    leave_run(tmp_path / "a/seed=0")
    assert link_best_model(read_sweep([tmp_path]), tmp_path) is None
    assert not (tmp_path / BEST_LINK).exists()
