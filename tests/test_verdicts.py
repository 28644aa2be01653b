"""What docs/verdicts.md claims, on the stored histories of its labelled runs."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "verdicts.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("verdicts", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules["verdicts"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs(study):
    return study.unpack()


def test_the_study_is_as_large_as_it_says(runs):
    labels = [run.label for run in runs]
    assert len(runs) >= 150
    assert labels.count("failed") >= len(runs) / 3
    assert sum(run.label == "learned" and run.learned_at > 0.25 for run in runs) >= 40
    assert {"data=docstrings" in run.overrides for run in runs} == {True, False}
    assert not {(run.setting, run.seed) for run in runs if run.calibration} & {
        (run.setting, run.seed) for run in runs if not run.calibration
    }


@pytest.mark.parametrize("every", [10, 30])
def test_held_out_runs_are_judged_right_and_early(study, runs, every):
    held_out = [run for run in runs if not run.calibration]
    failed = [run for run in held_out if run.label == "failed"]
    learned = [run for run in held_out if run.label == "learned"]
    flags = [study.bertmon_rules(run, every) for run in failed]
    shares = [flag / len(run.history.plan) for flag, run in zip(flags, failed, strict=True) if flag is not None]
    assert len(shares) >= 0.98 * len(failed)
    assert np.median(shares) <= 0.2
    assert sum(study.bertmon_rules(run, every) is not None for run in learned) <= 0.01 * len(learned)


def test_the_stored_histories_give_the_verdicts_that_the_runs_gave(study, runs):
    told = [run for run in runs if run.recorded]
    assert len(told) >= 40
    for run in told:
        *_, (_, last) = study.verdicts(run.history, every=10)
        assert last.verdict == run.recorded, run.overrides
