"""What docs/article.md claims, from the stored runs of its study."""

import importlib
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

import bertmon.run  # noqa: F401  # registers the types that are composed
from bertmon import config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(ROOT / "benchmarks"))  # it uses verdicts.py, which lies beside it
    try:
        yield importlib.import_module("article")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_every_table_on_the_page_is_what_the_stored_runs_give(study, capsys):
    study.main([])
    printed = capsys.readouterr().out.splitlines()
    rows = [line for line in (ROOT / "docs" / "article.md").read_text().splitlines() if line.startswith("|")]
    assert len(rows) > 20
    assert [row for row in rows if row not in printed] == []


def test_every_run_of_the_store_peaked_where_the_formula_says(study):
    for row in study.unpack():
        warmup = int(row.warmup_frac * row.steps_planned + 0.5)
        rates = []
        for step in range(row.steps_planned):
            factor = step / warmup if step < warmup else 1.0
            if step >= warmup and row.shape == "linear":
                factor = (row.steps_planned - step) / (row.steps_planned - warmup)
            t = step + 1
            rates.append(row.lr * factor * (1 if row.bias_correction else (1 - 0.9**t) / (1 - 0.999**t) ** 0.5))
        assert row.peak == pytest.approx(max(rates), rel=1e-4), row


def test_every_study_can_be_started(study):
    for each in study.STUDIES.values():
        first = [override.split(",")[0] for override in each.overrides.split() if not override.startswith("hydra/")]
        with initialize_config_module("bertmon.conf", version_base="1.3"):
            config.from_hydra(compose("config", first))


def test_a_sweep_is_told_and_goes_on_where_its_folder_is(study, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = []
    monkeypatch.setattr(study.subprocess, "run", lambda command, check: started.append(command[1:]))
    study.main(["sweep", "change_lr"])
    assert started[-1][:3] == ["-m", "bertmon.run", "-m"]
    assert started[-1][-1] == "hydra.sweep.dir=multirun/change_lr"
    assert capsys.readouterr().out == f"python {' '.join(started[-1])}\n"
    Path("multirun", "change_lr").mkdir(parents=True)
    study.main(["sweep", "change_lr"])
    assert started[-1][-1] == "resume=multirun/change_lr"
    study.main(["sweep", "cuda"])
    assert [command[-1].split("/")[-1] for command in started[2:]] == [
        "warmup_bert_base",
        "warmup_bert_base_bf16",
        "cliff_bert_base",
    ]
    with pytest.raises(SystemExit, match="no study change_rl; there are cpu, cuda, phase_docstrings"):
        study.main(["sweep", "change_rl"])
    with pytest.raises(SystemExit, match="no study 2026-11-23; there are phase_docstrings"):
        study.main(["pack", "multirun/2026-11-23"])
