"""The BERT-base study: its stored runs and their rows in the tables."""

import dataclasses
import json
import shutil
from pathlib import Path

import bert_base
import numpy as np
import pytest
from labeled_runs import BASE_FROM, CALIBRATION_BASE, Family, unpack

from bertmon.config import OnDoomed, OptimizerConfig
from bertmon.launch.compose import load_config
from bertmon.monitor.monitor import Monitor
from bertmon.notation import format_rate
from bertmon.result import RESULT_FILE
from bertmon.training.run_training import run_training


@pytest.fixture
def folder(settings, tmp_path, monkeypatch):
    """Two complete runs, and one with a larger rate that was stopped after 4 steps."""
    settings.experiment = "article"
    monkeypatch.setattr(bert_base, "compose_config", lambda overrides: settings)
    settings.monitor.every, settings.train.eval_every, settings.train.log_every = 2, 6, 1
    for name, seed, lr in (("a", 0, 1e-3), ("b/c", 1, 1e-3), ("d", 0, 2e-3)):
        config = dataclasses.replace(settings, seed=seed, optimizer=OptimizerConfig(lr=lr))
        run_dir = tmp_path / "study" / name
        run_dir.mkdir(parents=True)
        if name == "d":
            config.monitor.on_doomed = OnDoomed.stop
            monkeypatch.setattr(Monitor, "doomed", property(lambda self: len(self.history.losses) == 4))
        run_training(config, run_dir, name=name)
    return tmp_path / "study"


def test_packed_runs_are_unpacked_in_order_of_peak_rate(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bert_base, "BASE_STORE", tmp_path / "store")
    monkeypatch.setattr(bert_base, "EVALUATED_STEPS", (0, 6, 9, 12))
    monkeypatch.setattr(bert_base, "SHOWN_STEPS", (0, 10, 11))
    bert_base.main(["pack", str(folder / "d"), str(folder / "b")])
    bert_base.main(["pack", str(folder / "a")])  # added to the stored runs
    runs = unpack(tmp_path / "store")
    assert [(run.setting, run.seed, run.complete) for run in runs] == [
        (BASE_FROM, 0, True),
        (BASE_FROM, 1, True),
        (BASE_FROM + 1, 0, False),
    ]
    assert {run.family for run in runs} == {Family.base}
    assert [step for step, _ in runs[0].evaluations] == [0, 6, 12]
    assert np.array(runs[0].history.losses) == pytest.approx(
        np.array(next(iter(bert_base.read_runs([folder / "a"]))).history.losses), abs=1e-4
    )
    bert_base.main([])
    printed = capsys.readouterr().out.split("\n\n")[:3]
    outcomes, logit_stds, depth_ratios = (table.strip().split("\n") for table in printed)
    accuracies = [f"{100 * accuracy:.1f}" for _, accuracy in runs[0].evaluations]
    assert outcomes[2].startswith(
        f"| 32 | 0.25 | 1e-3 | yes | 1e-3 | 0 | {accuracies[0]}, {accuracies[1]}, -, {accuracies[2]} |"
    )
    assert outcomes[4].startswith("| 32 | 0.25 | 2e-3 | yes | 2e-3 | 0 | stopped at 4: ")
    first = runs[0].history.snapshots[0]
    assert logit_stds[2].split(" | ")[-1].startswith(f"{format_rate(first.logit_std, 2)}, ")
    assert depth_ratios[2].endswith(", - |")
    assert depth_ratios[2].split(" | ")[-1].startswith(f"{format_rate(first.depth_ratio[0], 2)}, ")


def test_run_that_differs_from_the_article_experiment_is_refused(folder, settings):
    settings.train.epochs = 5
    with pytest.raises(ValueError, match=r"study/a: expected train\.epochs=5, as in experiment=article, got 2\."):
        list(bert_base.read_runs([folder]))


def test_bert_base_tables_include_every_table_on_the_page(capsys):
    bert_base.main([])
    printed = capsys.readouterr().out.splitlines()
    page = (Path(__file__).parents[2] / "docs" / "article.md").read_text()
    section = page[page.index("## The same on BERT-base") :]
    rows = [line for line in section[: section.index("One more pair")].splitlines() if line.startswith("|")]
    assert len(rows) > 6
    assert [row for row in rows if row not in printed] == []


def test_picture_of_bert_base_is_a_png(tmp_path):
    bert_base.main(["picture", str(tmp_path / "runs.png")])
    assert (tmp_path / "runs.png").read_bytes().startswith(b"\x89PNG")


def test_duplicate_runs_and_other_experiments_are_refused(folder, tmp_path):
    shutil.copytree(folder / "a", folder / "copy")
    with pytest.raises(ValueError, match=r"copy: the same setting and seed as .*/a"):
        list(bert_base.read_runs([folder]))
    result = json.loads((folder / "a" / RESULT_FILE).read_text())
    (folder / "a" / RESULT_FILE).write_text(json.dumps({**result, "experiment": "quickstart"}))
    with pytest.raises(ValueError, match="a: expected a run of experiment=article, got quickstart"):
        list(bert_base.read_runs([folder]))


def test_run_seen_before_the_last_rule_change_is_not_held_out(folder):
    config = load_config(["experiment=article", "data.max_length=64", "schedule.warmup_frac=0.1"])
    values = {key: getattr(getattr(config, group), name) for key, (group, name) in bert_base.KEYS.items()}
    text = bert_base.setting_text(values)
    assert (text, 0) in CALIBRATION_BASE
    run = next(iter(bert_base.read_runs([folder / "a"])))
    seen = dataclasses.replace(run, overrides=text)
    assert (seen.calibration, seen.blind) == (True, False)
    assert (run.calibration, run.blind) == (False, True)
    assert dataclasses.replace(seen, seed=2).blind
