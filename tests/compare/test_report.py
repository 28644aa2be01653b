"""The report's files, and the command that writes them."""

import base64
import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from conftest import comparison, synthetic_history, write_run

from bertmon.compare import report, selection, summary, tables
from bertmon.compare.__main__ import main
from bertmon.compare.details import details, resume_commands, title
from bertmon.compare.results import read_sweep
from bertmon.monitor.history import HISTORY_FILE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sweep of four runs with its report."""
    folder = comparison(tmp_path_factory.mktemp("sweep"))
    (folder / "warmup_frac=0.1/seed=0/run.log").touch()
    report.write_report([folder], folder)
    return folder


def test_report_is_self_contained(folder):
    sweep = read_sweep([folder])
    text = (folder / "report.html").read_text()
    assert all(
        address.startswith(("#", "./", "data:image/png;base64,"))
        for address in re.findall(r'(?:src|href)="([^"]*)"', text)
    )
    assert "url(http" not in text
    svgs = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(svgs) == 2 + 3 + 1 + 6 + 2 * 3  # points, depth at three steps, curves, heat maps, bars at three steps
    for svg in svgs:
        ElementTree.fromstring(svg)
        assert "currentColor" in svg
        assert len(svg) < 150_000
    plain = re.sub(r"<[^>]*>", "", text)
    for sentence in summary.conclusions(sweep):
        assert sentence in plain
    markdown = (folder / "report.md").read_text()
    assert tables.settings_table(sweep).without_empty_columns().markdown() in markdown
    assert summary.conclusions(sweep)[1] in markdown


def test_report_allows_only_its_own_script(folder):
    text = (folder / "report.html").read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}'" in text


def test_report_shows_names_and_errors_as_text(tmp_path):
    write_run(tmp_path / "<b>x<!--/seed=0", overrides={"data.train": "<script>alert(1)<!-- b"})
    write_run(tmp_path / "y/seed=0", status="failed", error="<img src=x onerror=alert(1)>", measured=False)
    text = report.render_html(read_sweep([tmp_path]), tmp_path)
    for markup in ("<script>alert", "<img", "<b>x", "<!--"):
        assert markup not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_report_links_to_runs_and_logs(folder):
    text = (folder / "report.html").read_text()
    assert '<a href="./warmup_frac%3D0.1/seed%3D0/">warmup_frac=0.1/seed=0</a>' in text
    assert re.findall(r'href="(\S*run.log)"', text) == ["./warmup_frac%3D0.1/seed%3D0/run.log"]


def test_report_of_runs_without_results_says_so(tmp_path):
    (tmp_path / "sweep.json").write_text('{"runs": ["a/seed=0", "b/seed=0"]}')
    text = report.render_html(read_sweep([tmp_path]), tmp_path)
    assert "No run has ended yet: 2 not started." in text
    assert "<svg" not in text


def test_report_of_a_failed_run_shows_the_reason(tmp_path):
    write_run(tmp_path / "a/seed=0", status="failed", error="RuntimeError: out of memory", measured=False)
    corrupt = tmp_path / "b/seed=0"
    corrupt.mkdir(parents=True)
    (corrupt / "result.json").write_text("{")
    text = report.render_html(read_sweep([tmp_path]), tmp_path)
    assert "RuntimeError: out of memory" in text
    assert "is empty, corrupt, or not the result of a run" in text


def test_report_of_an_interrupted_sweep_says_how_to_resume_it(tmp_path):
    comparison(tmp_path)
    sweep_file = {"runs": [], "command": ["-m", "seed=0,1,2"], "directory": str(tmp_path)}
    (tmp_path / "sweep.json").write_text(json.dumps(sweep_file))
    report.write_report([tmp_path], tmp_path)
    assert "To resume" not in (tmp_path / "report.html").read_text()
    write_run(tmp_path / "warmup_frac=0.7/seed=2", seed=2, status="interrupted", steps=31)
    sweep = report.write_report([tmp_path], tmp_path)
    assert tables.unfinished_table(sweep).rows == (("warmup_frac=0.7/seed=2", "interrupted", "31 of 100"),)
    command = f"To resume: <code>python -m bertmon resume {tmp_path}</code>"
    assert command in (tmp_path / "report.html").read_text()
    assert f"To resume: `python -m bertmon resume {tmp_path}`" in (tmp_path / "report.md").read_text()


def test_report_of_an_interrupted_run_says_how_to_resume_it(tmp_path):
    run_dir = write_run(tmp_path / "run", status="interrupted", steps=31)
    sweep_file = {"runs": ["."], "command": ["seed=0"], "directory": str(tmp_path)}
    (run_dir / "sweep.json").write_text(json.dumps(sweep_file))
    assert resume_commands(read_sweep([run_dir])) == [f"python -m bertmon resume {run_dir}"]


def test_details_have_no_control_characters(tmp_path):
    folder = comparison(tmp_path / "sweep", seeds=1)
    (folder / "sweep.json").write_text(json.dumps({"runs": [], "command": ["name=\x1b[31m\u202e"], "directory": "."}))
    for text in (report.render_markdown(read_sweep([folder])), report.render_html(read_sweep([folder]), folder)):
        assert "\x1b" not in text
        assert "\\x1b[31m" in text


def test_markdown_details_are_not_truncated(tmp_path):
    command = [f"seed={','.join(map(str, range(200)))}", "-m"]
    for name in ("one", "two"):
        folder = comparison(tmp_path / name, seeds=1)
        (folder / "sweep.json").write_text(json.dumps({"runs": [], "command": command, "directory": "."}))
    lines = report.render_markdown(read_sweep([tmp_path / "one", tmp_path / "two"])).splitlines()
    line = next(line for line in lines if line.startswith("| Command |"))
    assert line == f"| Command | {'<br>'.join(2 * [f'python -m bertmon.run {command[0]} -m'])} |"


def test_report_has_no_nan(tmp_path):
    evaluations = [{"step": 100, "loss": None, "accuracy": 0.25}]
    for seed in (1, 2):
        changes = {"status": "diverged", "evaluations": evaluations, "verdict": "diverged"}
        write_run(tmp_path / f"a/seed={seed}", seed=seed, measured=False, **changes)
    report.write_report([tmp_path], tmp_path)
    for name in ("report.html", "report.md", "runs.csv"):
        assert not re.search(r"\bnan\b", (tmp_path / name).read_text())


def test_report_names_the_weights_of_each_model(tmp_path):
    comparison(tmp_path, seeds=1)
    deep = synthetic_history(learns=True, depth=5)
    (tmp_path / "warmup_frac=0.7/seed=0" / HISTORY_FILE).write_bytes(deep.to_bytes())
    assert "enc.l.4.output.dense" in report.render_html(read_sweep([tmp_path]), tmp_path)


def test_runs_csv_has_a_row_for_each_run(tmp_path):
    comparison(tmp_path, seeds=1)
    (tmp_path / "sweep.json").write_text('{"runs": ["later/seed=0"]}')
    rows = list(csv.DictReader(io.StringIO(report.runs_csv(read_sweep([tmp_path])))))
    assert len(rows) == 3
    assert rows[0]["status"] == "not started"
    row = rows[1]
    assert row.pop("folder") == f"{tmp_path}/warmup_frac=0.1/seed=0"
    assert float(row.pop("loss")) == pytest.approx(1.15)
    assert row == {
        "run": "warmup_frac=0.1/seed=0",
        "schedule.warmup_frac": "0.1",
        "seed": "0",
        "status": "finished",
        "accuracy": "0.25",
        "f1_macro": "",
        "mcc": "",
        "best_accuracy": "0.25",
        "did_not_learn": "True",
        "verdict": "collapsed",
        "verdict_step": "20",
        "peak_effective_lr": "0.002",
        "steps": "100",
        "total_steps": "100",
        "seconds": "30.0",
    }


def test_runs_csv_is_read_by_pandas(folder):
    import pandas

    table = pandas.read_csv(folder / "runs.csv")
    assert table.groupby("schedule.warmup_frac")["accuracy"].mean().to_dict() == pytest.approx({0.1: 0.25, 0.7: 0.8})
    assert table["did_not_learn"].tolist() == [True, True, False, False]


def test_title_and_details_describe_the_sweep():
    sweep = read_sweep([Path(__file__).parent / "version_0_1"])
    assert title(sweep) == "BERT (8 layers, width 128) on docstrings: warmup_frac = 0.1, 0.7"
    facts = dict(details(sweep))
    assert facts.pop("Folder").endswith("version_0_1")
    assert facts == {
        "Data": "docstrings, 3600 texts to train on, 400 to test on, 4 classes (numpy, sklearn, matplotlib, torch), "
        "most frequent class 25.0 %",
        "Model": "BERT (8 layers, width 128), 2.7 M parameters, random weights",
        "Optimizer": "AdamW, learning rate 5.5e-4, no bias correction, betas 0.9 and 0.999, eps 1e-6, weight decay 0, "
        "gradients clipped at 1",
        "Schedule": "warm-up swept, linear decay, 3 epochs, 675 steps",
        "Batch": "16 texts, at most 32 tokens each, fp32",
        "Device": "cpu",
        "Versions": "bertmon 0.1.0, hydra-core 1.3.8, numpy 2.4.6, tokenizers 0.23.3, torch 2.13.0+cpu, "
        "transformers 5.23.0",
        "Started": "2026-11-25 16:40",
        "Command": "python -m bertmon.run -m schedule.warmup_frac=0.1,0.7",
    }


def test_title_of_runs_without_a_config_is_the_folder(tmp_path):
    (tmp_path / "sweep.json").write_text('{"runs": ["a/seed=0"]}')
    assert title(read_sweep([tmp_path])) == tmp_path.name


def test_report_of_a_thousand_runs_stays_small(tmp_path):
    for number in range(1000):
        write_run(
            tmp_path / f"lr={number % 250}/seed={number // 250}",
            learns=number % 3 > 0,
            seed=number // 250,
            overrides={"optimizer.lr": number % 250},
        )
    sweep = report.write_report([tmp_path], tmp_path)
    assert (len(sweep.settings), len(sweep.runs)) == (250, 1000)
    assert len(selection.select_curves(sweep)) <= 60
    assert (tmp_path / "report.html").stat().st_size < 3_000_000
    assert len(summary.console_summary(sweep).splitlines()) < 50


# --- the command ---------------------------------------------------------------------------------


def test_compare_writes_the_report_and_prints_the_answer(tmp_path, capsys, monkeypatch):
    comparison(tmp_path / "sweep")
    main([str(tmp_path / "sweep")])
    assert (tmp_path / "sweep/report.html").exists()
    output = capsys.readouterr().out
    assert output.startswith("warmup_frac  runs  test accuracy")
    assert output.endswith(f"Report: {tmp_path}/sweep/report.html\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["sweep", "sweep/warmup_frac=0.1"])
    assert "--out: expected a folder for the report of several sweeps" in capsys.readouterr().err
    main(["sweep", "sweep/warmup_frac=0.1", "--out", "elsewhere/deep"])
    assert (tmp_path / "elsewhere/deep/report.md").exists()


def test_compare_of_a_wrong_folder_prints_one_line(tmp_path):
    def fails(*arguments):
        process = subprocess.run(
            [sys.executable, "-m", "bertmon", "compare", *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert process.returncode == 1
        assert "Traceback" not in process.stderr
        return process.stderr

    assert fails("nowhere") == ("nowhere: expected the folder of a sweep, such as multirun/2026-11-23_07-17-49.\n")
    (tmp_path / "file").touch()
    comparison(tmp_path / "sweep", seeds=1)
    assert fails("sweep", "--out", "file/deep") == "could not read or write file/deep: Not a directory.\n"


def test_refresh_report_is_throttled(tmp_path):
    comparison(tmp_path, seeds=1)
    (tmp_path / "sweep.json").write_text('{"runs": ["warmup_frac=0.1/seed=0", "later/seed=0"]}')
    page = tmp_path / "report.html"
    report.refresh_report(tmp_path)
    assert not page.exists()  # the sweep is young
    hour_ago = time.time() - 3600
    os.utime(tmp_path / "sweep.json", (hour_ago, hour_ago))
    report.refresh_report(tmp_path)
    first = page.stat().st_mtime_ns
    report.refresh_report(tmp_path)
    assert page.stat().st_mtime_ns == first
    os.utime(page, (hour_ago, hour_ago))
    report.refresh_report(tmp_path)
    assert page.stat().st_mtime > hour_ago + 1


def test_refresh_report_leaves_a_complete_sweep_to_the_launch(tmp_path):
    comparison(tmp_path, seeds=1)
    (tmp_path / "sweep.json").write_text('{"runs": ["warmup_frac=0.1/seed=0", "warmup_frac=0.7/seed=0"]}')
    os.utime(tmp_path / "sweep.json", (0, 0))
    report.refresh_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_refresh_report_logs_errors(tmp_path, caplog):
    report.refresh_report(Path("/nowhere"))
    comparison(tmp_path, seeds=1)
    (tmp_path / "sweep.json").write_text('{"runs": ["later/seed=0"]}')
    os.utime(tmp_path / "sweep.json", (0, 0))
    (tmp_path / "report.html").mkdir()
    os.utime(tmp_path / "report.html", (0, 0))
    report.refresh_report(tmp_path)
    assert [message.partition(" could not be written: ")[0] for message in caplog.messages] == [
        "/nowhere/report.html",
        f"{tmp_path}/report.html",
    ]
    assert "Is a directory" in caplog.messages[1]
