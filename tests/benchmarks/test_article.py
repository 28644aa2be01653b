"""The claims of docs/article.md, checked against the stored runs of its study."""

from pathlib import Path

import article
import article_runs
import pytest
from environment import compose_config

ROOT = Path(__file__).parents[2]


def test_article_tables_include_every_table_on_the_page(capsys):
    article.main([])
    printed = capsys.readouterr().out.splitlines()
    page = (ROOT / "docs" / "article.md").read_text()
    start, end = page.index("## Where runs fail"), page.index("## The same on BERT-base")  # test_bert_base.py
    section = page[start:end]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) > 20
    assert [row for row in rows if row not in printed] == []


def test_article_pictures_writes_two_png_files(tmp_path):
    article.main(["pictures", str(tmp_path / "docs")])
    names = sorted(path.name for path in (tmp_path / "docs").iterdir() if path.read_bytes().startswith(b"\x89PNG"))
    assert names == ["article_cliff.png", "article_phase.png"]


def test_article_with_an_unknown_argument_prints_the_usage():
    with pytest.raises(SystemExit, match=r"python benchmarks/article\.py"):
        article.main(["sweep", "cpu"])


def test_stored_peak_rates_match_the_formula():
    for row in article_runs.unpack():
        warmup = int(row.warmup_frac * row.total_steps + 0.5)
        beta2 = 0.99 if "beta2" in row.study else 0.999
        rates = []
        for step in range(row.total_steps):
            factor = step / warmup if step < warmup else 1.0
            if step >= warmup and row.decay == "linear":
                factor = (row.total_steps - step) / (row.total_steps - warmup)
            t = step + 1
            rates.append(row.lr * factor * (1 if row.bias_correction else (1 - 0.9**t) / (1 - beta2**t) ** 0.5))
        assert row.peak_effective_lr == pytest.approx(max(rates), rel=1e-4), row


def test_article_studies_are_valid_configs():
    for study in article_runs.STUDIES.values():
        compose_config(
            [override.split(",")[0] for override in study.overrides.split() if not override.startswith("hydra/")]
        )


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Commands that would have been started, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    started = []
    monkeypatch.setattr(article_runs.subprocess, "run", lambda command, check: started.append(command[1:]))
    return started


def test_article_sweep_prints_its_command_and_resumes_an_existing_folder(commands, capsys):
    article_runs.main(["sweep", "change_lr"])
    assert commands[-1][:3] == ["-m", "bertmon.run", "-m"]
    assert commands[-1][-1] == "hydra.sweep.dir=multirun/change_lr"
    assert capsys.readouterr().out == f"python {' '.join(commands[-1])}\n"
    Path("multirun", "change_lr").mkdir(parents=True)
    article_runs.main(["sweep", "change_lr"])
    assert commands[-1][-1] == "resume=multirun/change_lr"


def test_article_sweep_of_a_device_appends_overrides_to_its_studies(commands):
    article_runs.main(["sweep", "cuda", "model.tokenizer=there", "data.data_home=here"])
    names = [command[-1].split("/")[-1] for command in commands]
    assert names == ["warmup_bert_base", "warmup_bert_base_bf16", "cliff_bert_base"]
    assert all(command[-3:-1] == ["model.tokenizer=there", "data.data_home=here"] for command in commands)


def test_article_runs_with_an_unknown_study_lists_the_known_ones(commands):
    with pytest.raises(SystemExit, match="no study change_rl; there are cpu, cuda, phase_docstrings"):
        article_runs.main(["sweep", "change_rl"])
    with pytest.raises(SystemExit, match="no study 2026-11-23; there are phase_docstrings"):
        article_runs.main(["pack", "multirun/2026-11-23"])
    with pytest.raises(SystemExit, match=r"python benchmarks/article_runs\.py"):
        article_runs.main(["sweep", "optimizer.lr=1e-3"])
    assert commands == []


def test_article_pack_of_an_empty_folder_exits_and_keeps_the_table(tmp_path):
    (tmp_path / "change_lr").mkdir()
    before = article_runs.STORE.read_bytes()
    with pytest.raises(SystemExit, match="change_lr contains no runs"):
        article_runs.main(["pack", str(tmp_path / "change_lr")])
    assert article_runs.STORE.read_bytes() == before
