"""Steps saved and best runs lost, on small examples and with Optuna's pruners."""

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Optuna 2 uses functions that SQLAlchemy 1.4 deprecates
    import compute_saved
    from compute_saved import REPORTS, ReplayedRun, Saved
    from optuna.pruners import BasePruner, NopPruner

from labeled_runs import unpack

from bertmon.integrations.optuna import LearnedPruner


def run(accuracy, steps=2700, verdicts=("undecided",) * REPORTS, flagged_step=None):
    """A replayed run; its loss is one minus its accuracy throughout."""
    return ReplayedRun(
        task="docstrings",
        accuracy=accuracy,
        majority_share=0.25,
        steps=tuple(steps * report // REPORTS for report in range(1, REPORTS + 1)),
        values=(1 - accuracy,) * REPORTS,
        attributes=tuple({"bertmon:verdict": verdict} for verdict in verdicts),
        flagged_step=flagged_step,
    )


class PruneAll(BasePruner):
    def prune(self, study, trial):
        return True


def test_running_all_to_the_end_saves_and_loses_nothing():
    assert compute_saved.to_the_end([run(0.5), run(0.8)]) == Saved(1.0, False, 0.0)


def test_stopping_doomed_runs_saves_the_steps_after_their_flags():
    runs = [run(0.25, steps=2700, flagged_step=269), run(0.8, steps=5400)]
    assert compute_saved.doomed_stopped(runs) == Saved((270 + 5400) / 8100, False, 0.0)


def test_pruning_the_best_run_loses_its_accuracy_lead():
    result = compute_saved.saved([run(0.8), run(0.5)], [100, 2700])
    assert (result.best_lost, result.accuracy_lost) == (True, pytest.approx(0.3))


def test_pruning_all_runs_leaves_the_majority_class():
    result = compute_saved.pruned([run(0.8), run(0.5)], PruneAll(), "all")
    assert result.steps_share == 200 / 5400
    assert result.accuracy_lost == pytest.approx(0.55)


def test_pruning_no_run_equals_running_all_to_the_end():
    runs = [run(0.8), run(0.5)]
    assert compute_saved.pruned(runs, NopPruner(), "none") == compute_saved.to_the_end(runs)


def test_learned_pruner_in_a_study_sees_the_verdicts():
    doomed = run(0.25, verdicts=("undecided",) * 2 + ("collapsed",) * (REPORTS - 2))
    learned = run(0.5, verdicts=("undecided",) * 4 + ("healthy",) * (REPORTS - 4))
    result = compute_saved.pruned([doomed, learned, run(0.8)], LearnedPruner(PruneAll()), "some")
    assert result == Saved((300 + 500 + 2700) / 8100, False, 0.0)


def test_drawn_sweeps_are_deterministic_and_can_be_limited_to_one_task():
    replayed = [compute_saved.replay(labeled) for labeled in unpack()[::6]]
    assert {len(sweep) for sweep in compute_saved.draw_sweeps(replayed, 5, one_task=False)} == {16}
    sweeps = list(compute_saved.draw_sweeps(replayed, 5, one_task=True))
    assert sweeps == list(compute_saved.draw_sweeps(replayed, 5, one_task=True))
    assert all(len({run.task for run in sweep}) == 1 for sweep in sweeps)


def test_replayed_run_has_the_steps_and_last_verdict_of_the_run():
    for labeled in unpack()[::60]:
        replayed = compute_saved.replay(labeled)
        assert replayed.steps[-1] == len(labeled.history.losses)
        assert sorted(replayed.steps) == list(replayed.steps)
        doomed = replayed.attributes[-1]["bertmon:verdict"] in ("collapsed", "diverged", "not learning")
        assert not doomed or replayed.flagged_step is not None


@pytest.mark.slow
def test_table_has_a_row_for_every_policy(capsys):
    compute_saved.main(["calibration", "2"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 2 + 2 * len(compute_saved.PRUNERS) + 1
    assert rows[1] == "| all runs to the end | 1.00 | 0.0 % | 0.00 | 1.00 | 0.0 % | 0.00 |"
