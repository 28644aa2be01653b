import pytest
from conftest import write_run

from bertmon.compare.best_model import BEST_LINK, link_best_model
from bertmon.compare.results import read_sweep
from bertmon.result import RESULT_FILE, SweepFile


def sweep_of_four(folder, *, keep="best", **last):
    """Two settings of two seeds with saved models; the one with warm-up 0.3 is better."""
    for warmup, accuracies in ((0.1, (0.95, 0.5)), (0.3, (0.8, 0.85))):
        for seed, accuracy in enumerate(accuracies):
            run_dir = write_run(
                folder / f"warmup_frac={warmup}/seed={seed}",
                accuracy=accuracy,
                seed=seed,
                overrides={"schedule.warmup_frac": warmup, "train.keep": keep, "train.save_model": "best"},
                model_dir="model",
                **(last if (warmup, seed) == (0.3, 1) else {}),
            )
            (run_dir / "model").mkdir()
    return add_sweep_file(folder)


def add_sweep_file(folder):
    """Add the sweep.json of a launch that made all runs in the folder."""
    names = tuple(str(path.parent.relative_to(folder)) for path in sorted(folder.rglob(RESULT_FILE)))
    SweepFile(names, (), str(folder)).write(folder)
    return folder


def saved_models(folder):
    return sorted(str(path.parent.relative_to(folder)) for path in folder.glob("*/*/model"))


def test_link_best_model_points_to_the_best_run_of_the_best_setting(tmp_path):
    link = link_best_model(read_sweep([sweep_of_four(tmp_path)]), tmp_path)
    assert link == tmp_path / BEST_LINK
    assert link.samefile(tmp_path / "warmup_frac=0.3/seed=1/model")
    assert saved_models(tmp_path) == ["warmup_frac=0.3/seed=0", "warmup_frac=0.3/seed=1"]


def test_link_best_model_keeps_the_model_that_it_chose_from_equally_good_settings(tmp_path):
    for warmup in (0.1, 0.3, 0.5):
        overrides = {"schedule.warmup_frac": warmup, "train.keep": "best", "train.save_model": "best"}
        run_dir = write_run(tmp_path / f"warmup_frac={warmup}/seed=0", accuracy=0.9, overrides=overrides)
        (run_dir / "model").mkdir()
    link = link_best_model(read_sweep([add_sweep_file(tmp_path)]), tmp_path)
    assert saved_models(tmp_path) == [str(link.resolve().parent.relative_to(tmp_path))]


def test_link_best_model_with_keep_all_deletes_no_model(tmp_path):
    link_best_model(read_sweep([sweep_of_four(tmp_path, keep="all")]), tmp_path)
    assert len(saved_models(tmp_path)) == 4


@pytest.mark.parametrize("status", ["running", "interrupted"])
def test_link_best_model_of_an_unfinished_sweep_deletes_no_model(tmp_path, status):
    link_best_model(read_sweep([sweep_of_four(tmp_path, status=status)]), tmp_path)
    assert (tmp_path / BEST_LINK).resolve() == (tmp_path / "warmup_frac=0.3/seed=0/model").resolve()
    assert len(saved_models(tmp_path)) == 4


def test_link_best_model_again_moves_the_link(tmp_path):
    sweep_of_four(tmp_path, keep="all")
    link_best_model(read_sweep([tmp_path]), tmp_path)
    better = write_run(
        tmp_path / "warmup_frac=0.5/seed=0",
        accuracy=0.99,
        overrides={"schedule.warmup_frac": 0.5, "train.save_model": "best"},
        model_dir="model",
    )
    (better / "model").mkdir()
    add_sweep_file(tmp_path)
    assert link_best_model(read_sweep([tmp_path]), tmp_path) == tmp_path / BEST_LINK
    assert (tmp_path / BEST_LINK).resolve() == (better / "model").resolve()


def test_link_best_model_without_a_saved_model_makes_no_link(tmp_path):
    write_run(tmp_path / "a/seed=0")
    assert link_best_model(read_sweep([tmp_path]), tmp_path) is None
    assert not (tmp_path / BEST_LINK).exists()


def test_link_best_model_deletes_no_model_of_other_launches_or_other_data(tmp_path):
    sweep_of_four(tmp_path)
    data = {
        "fingerprint": "other",
        "train_texts": 9,
        "test_texts": 400,
        "label_names": ["a", "b"],
        "majority_share": 0.5,
    }
    keep = {"train.keep": "best", "train.save_model": "best"}
    other = write_run(tmp_path / "german/seed=0", accuracy=0.7, overrides=keep, data=data, model_dir="model")
    (other / "model").mkdir()
    add_sweep_file(tmp_path)
    foreign = write_run(tmp_path / "v1/seed=0", accuracy=0.99, overrides=keep, model_dir="model")
    (foreign / "model").mkdir()
    link = link_best_model(read_sweep([tmp_path]), tmp_path)
    assert link.samefile(tmp_path / "warmup_frac=0.3/seed=1/model")
    assert saved_models(tmp_path) == [
        "german/seed=0",
        "v1/seed=0",
        "warmup_frac=0.3/seed=0",
        "warmup_frac=0.3/seed=1",
    ]


def test_link_best_model_returns_the_model_if_it_cannot_link_it(tmp_path):
    sweep_of_four(tmp_path)
    (tmp_path / BEST_LINK).mkdir()
    assert link_best_model(read_sweep([tmp_path]), tmp_path) == tmp_path / "warmup_frac=0.3/seed=1/model"


def test_link_best_model_of_a_search_includes_all_runs_of_its_folder(tmp_path):
    sweep_of_four(tmp_path)
    SweepFile((), (), str(tmp_path)).write(tmp_path)
    assert link_best_model(read_sweep([tmp_path]), tmp_path) == tmp_path / BEST_LINK
    assert saved_models(tmp_path) == ["warmup_frac=0.3/seed=0", "warmup_frac=0.3/seed=1"]


def test_unfinished_run_of_another_launch_does_not_keep_models(tmp_path):
    sweep_of_four(tmp_path)
    write_run(tmp_path / "other/seed=0", status="interrupted")
    link_best_model(read_sweep([tmp_path]), tmp_path)
    assert len(saved_models(tmp_path)) == 2
