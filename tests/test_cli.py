"""The command `bertmon`: subcommands, help, and commands that can be pasted."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import completed

from bertmon import cli
from bertmon.errors import InputError
from bertmon.launch.command_line import program
from bertmon.launch.run_names import quote_override
from bertmon.result import RunResult


def launch(folder, age):
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text("{}")
    os.utime(folder / "sweep.json", (1e9 - age, 1e9 - age))
    return folder


def test_latest_sweep_is_the_one_started_last_regardless_of_its_name(tmp_path):
    assert cli.latest_sweep(tmp_path) is None
    assert cli.latest_sweep(tmp_path / "nowhere") is None
    (tmp_path / "zzz").mkdir()
    newer = launch(tmp_path / "2026-11-23_07-17-49", age=10)
    launch(tmp_path / "study", age=20)
    assert cli.latest_sweep(tmp_path) == newer


def test_tensorboard_listens_on_this_machine_only(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = launch(tmp_path / "multirun/monday", age=0)
    started = []
    monkeypatch.setattr(os, "execv", lambda path, command: started.append(command))
    cli.main(["tensorboard"])
    cli.main(["tensorboard", str(folder), "--port", "7000"])
    common = ["--samples_per_plugin", "images=100", "--host", "localhost"]
    assert started[0][3:] == ["--logdir", "multirun/monday", *common]
    assert started[1][3:] == ["--logdir", str(folder), *common, "--port", "7000"]
    assert capsys.readouterr().out.startswith("TensorBoard on multirun/monday\n")


def test_tensorboard_without_a_sweep_names_what_is_expected(start_process):
    process = completed(start_process([sys.executable, "-m", "bertmon", "tensorboard"]))
    message = "bertmon tensorboard: there is no sweep in ./multirun; give the folder of one.\n"
    assert (process.returncode, process.stderr) == (1, message)


def test_bertmon_without_arguments_and_help_print_all_commands(capsys):
    for arguments in ([], ["--help"], ["-h"]):
        cli.main(arguments)
        overview = capsys.readouterr().out
        for name in ("run", "resume", "rerun", "compare", "predict", "range", "tensorboard", "--version"):
            assert name in overview
        assert max(map(len, overview.splitlines())) <= 110


def test_version_is_that_of_the_package(capsys):
    from importlib import metadata

    cli.main(["--version"])
    assert capsys.readouterr().out == f"bertmon {metadata.version('bertmon')}\n"


@pytest.mark.parametrize("command", ["resume", "rerun", "compare", "range", "tensorboard"])
def test_help_of_a_subcommand_names_its_arguments(capsys, command):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: bertmon {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tensorbord"], "bertmon tensorbord: no such command; did you mean tensorboard?"),
        (["comprae", "x"], "bertmon comprae: no such command; did you mean compare?"),
        (
            ["xyz"],
            "bertmon xyz: no such command; the commands are run, resume, rerun, compare, predict, range, tensorboard.",
        ),
    ],
)
def test_mistyped_subcommand_gets_a_suggestion(arguments, message):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == message


def test_console_script_shows_configs_from_any_directory(start_process):
    script = Path(sys.executable).with_name("bertmon")
    process = completed(start_process([str(script), "run", "--cfg", "job"]))
    assert process.returncode == 0, process.stderr
    assert "warmup_frac: 0.1" in process.stdout


def test_help_imports_neither_torch_nor_transformers_nor_sklearn(start_process):
    code = (
        "import sys; sys.argv = ['bertmon', 'run', '--help']\n"
        "from bertmon.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('LOADED', sorted({'torch', 'transformers', 'sklearn', 'matplotlib'} & set(sys.modules)))\n"
    )
    process = completed(start_process([sys.executable, "-c", code]))
    assert process.stdout.splitlines()[-1] == "LOADED []", process.stderr
    assert "bertmon resume multirun/<sweep>" in process.stdout


def test_program_is_the_command_that_started_this_process(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["/x/bertmon/__main__.py"])
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-m", "bertmon"])
    assert program() == [sys.executable, "-m", "bertmon"]
    monkeypatch.setattr(sys, "orig_argv", ["python-of-nowhere", "-m", "bertmon"])
    assert program() == [sys.executable, "-m", "bertmon"]
    short = Path(sys.executable).name
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    monkeypatch.setattr(sys, "orig_argv", [short, "-m", "bertmon"])
    assert program() == [short, "-m", "bertmon"]
    script = tmp_path / "bertmon"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert program() == [str(script)]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program() == ["bertmon"]


def test_program_runs_when_pasted(start_process):
    command = shlex.join([*program(), "--version"])
    process = completed(start_process(["sh", "-c", command], cwd=Path.cwd()))
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("bertmon ")


def folder_overrides(folder):
    """The overrides that place all runs of a launch in its folder."""
    folder, run_dir = quote_override(folder), quote_override(f"{folder}/${{hydra.sweep.subdir}}")
    return [f"hydra.sweep.dir={folder}", f"hydra.run.dir={run_dir}", f"resume={folder}"]


def test_resume_from_another_folder_uses_paths_that_are_valid_there(tmp_path, monkeypatch):
    from bertmon.launch.run_dirs import resume_argvs
    from bertmon.result import SweepFile

    started, sweep = tmp_path / "started here", tmp_path / "started here" / "multirun" / "now"
    sweep.mkdir(parents=True)
    SweepFile(("x/seed=0",), ("seed=1,2", "-m"), str(started)).write(sweep)
    monkeypatch.chdir(started)
    assert resume_argvs(Path("multirun/now")) == [[str(started), "seed=1,2", "-m", *folder_overrides("multirun/now")]]
    monkeypatch.chdir(tmp_path)
    ((directory, *arguments),) = resume_argvs(sweep.relative_to(tmp_path))
    assert (directory, arguments) == (str(started), ["seed=1,2", "-m", *folder_overrides(sweep)])  # valid from both
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "link").symlink_to(started)
    SweepFile(("x/seed=0",), ("seed=1,2",), str(tmp_path / "deeper" / "link")).write(sweep)
    monkeypatch.chdir(started)
    assert resume_argvs(Path("multirun/now")) == [[str(started), "seed=1,2", *folder_overrides("multirun/now")]]


@pytest.mark.parametrize(
    ("runs", "named", "now"),
    [
        ((".",), "++hydra.run.dir=before", ["hydra.run.dir=now", "resume=now"]),
        (("x/seed=0",), "hydra.run.dir='before/${hydra.sweep.subdir}'", folder_overrides("now")),
        (("x/seed=0",), "hydra.run.dir=before/x/seed=0/", folder_overrides("now")),
        (("x/seed=0",), "hydra.sweep.dir=${now:%H-%M}", folder_overrides("now")),
        (("x/seed=0",), "+resume=elsewhere", folder_overrides("now")),
    ],
)
def test_resume_of_a_moved_folder_resumes_there(tmp_path, monkeypatch, runs, named, now):
    from bertmon.launch.run_dirs import resume_argvs
    from bertmon.result import SweepFile

    monkeypatch.chdir(tmp_path)
    Path("now").mkdir()
    SweepFile(runs, ("seed=1", named), str(tmp_path)).write(Path("now"))
    assert resume_argvs(Path("now")) == [[str(tmp_path), "seed=1", *now]]


def test_resume_adds_overrides_to_the_earlier_command(tmp_path, monkeypatch):
    from bertmon.result import SweepFile

    SweepFile((".",), ("seed=1,2", "device=cuda"), str(tmp_path)).write(tmp_path)
    monkeypatch.chdir(tmp_path)
    commands = []
    monkeypatch.setattr(cli, "run", commands.append)
    cli.main(["resume", ".", "device=cpu"])
    assert commands == [["seed=1,2", "device=cuda", "hydra.run.dir=.", "resume=.", "device=cpu"]]
    with pytest.raises(SystemExit, match=r"seed: expected no override, because the sweep varies this key .*, got 1"):
        cli.main(["resume", ".", "seed=1"])


@pytest.mark.parametrize(("code", "started"), [(1, ["seed=1", "seed=2"]), (130, ["seed=1"]), ("disk full", ["seed=1"])])
def test_failed_run_of_one_launch_does_not_keep_the_others_from_resuming(tmp_path, monkeypatch, code, started):
    from bertmon.result import Launch, SweepFile

    launches = [Launch((name,), (f"seed={name}",), str(tmp_path)) for name in "12"]
    SweepFile(("1",), launches[0].command, str(tmp_path)).with_launch(launches[1]).write(tmp_path)
    commands = []

    def run(command):
        commands.append(command[0])
        sys.exit(code)

    monkeypatch.setattr(cli, "run", run)
    with pytest.raises(SystemExit) as ended:
        cli.main(["resume", str(tmp_path)])
    assert (commands, ended.value.code) == (started, code)


def test_resume_in_a_deleted_directory_prints_the_command_to_start(tmp_path):
    from bertmon.launch.run_dirs import resume_argvs
    from bertmon.result import SweepFile

    SweepFile((".",), ("seed=1,2", "resume=x"), "/no/where").write(tmp_path)
    with pytest.raises(
        InputError, match=f"no longer exists.*: .* run seed=1,2 hydra.run.dir={tmp_path} resume={tmp_path}$"
    ):
        resume_argvs(tmp_path)


def test_predict_is_called_with_its_arguments(monkeypatch):
    from bertmon import predict

    calls = []
    monkeypatch.setattr(predict, "main", calls.append)
    cli.main(["predict", "model", "texts.csv"])
    assert calls == [["model", "texts.csv"]]


def test_run_is_called_with_its_arguments(monkeypatch):
    import bertmon.run

    calls = []
    monkeypatch.setattr(bertmon.run, "main", lambda: calls.append(sys.argv[1:]))
    monkeypatch.setattr(sys, "argv", ["bertmon"])
    cli.main(["run", "seed=1"])
    cli.main(["schedule.warmup_frac=0.1", "-m"])
    cli.main(["-m", "seed=1,2"])
    assert calls == [["seed=1"], ["schedule.warmup_frac=0.1", "-m"], ["-m", "seed=1,2"]]


def test_unix_only_modules_are_not_imported_at_the_top(tmp_path):
    blocked = "import sys\nfor name in ('fcntl', 'resource', 'pwd', 'grp', 'termios'): sys.modules[name] = None\n"
    modules = ("cli", "launch.hydra_setup", "launch.command_line", "launch.final_summary")
    code = f"{blocked}import {', '.join(f'bertmon.{name}' for name in modules)}"
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_run_into_a_pipe_that_closes_trains_to_the_end_quietly(start_process, demo_files, tmp_path):
    arguments = [sys.executable, "-m", "bertmon.run", *demo_files, "hydra.run.dir=run", "monitor.figures=false"]
    command = f"{shlex.join(arguments)} | head -n 1"
    process = completed(start_process(["sh", "-c", command], cwd=tmp_path))
    assert process.stdout.startswith("experiment=quickstart, as requested")
    assert "Error" not in process.stderr
    assert RunResult.read_ended(tmp_path / "run") is not None
    assert "accuracy/test" in (tmp_path / "run" / "run.log").read_text()


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (BrokenPipeError, 1)])
def test_launch_interrupted_while_its_report_is_written_ends_quietly(
    bertmon_here, demo_files, monkeypatch, error, code
):
    def fail(*_):
        raise error

    monkeypatch.setattr("bertmon.compare.report.write_report", fail)
    monkeypatch.setattr("bertmon.run.exit_after_closed_pipe", lambda: sys.exit(1))
    monkeypatch.setattr("bertmon.launch.final_summary._statuses", lambda _: [None])
    process = bertmon_here("run", *demo_files, "hydra.run.dir=run", "train.epochs=1", "monitor=off")
    assert process.returncode == code
    assert "Traceback" not in process.stderr
    assert "To resume: " in process.stdout  # printed before the report is written


def test_help_into_a_pipe_that_closes_ends_quietly(start_process):
    command = f"{shlex.quote(sys.executable)} -m bertmon.run --help | head -n 1"
    process = completed(start_process(["sh", "-c", command], cwd=Path.cwd()))
    assert process.stderr == ""
