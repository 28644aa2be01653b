"""The GPU validation script, rehearsed without a GPU: every part at tiny sizes, and the driver that runs them."""

import json
import os
import tarfile
from pathlib import Path
from types import SimpleNamespace

import cuda_parts
import cuda_validation
import pytest
import torch
from conftest import wait_until

ROOT = Path(__file__).parents[2]
SKIPPED_ON_THE_CPU = {"waits", "compile", "memory"}


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A stand-in for cuda_parts.py that records its arguments and ends as tmp_path/outcomes.json says for the part."""
    script = tmp_path / "cuda_parts.py"
    script.write_text(
        "import json, pathlib, sys, time\n"
        "home = pathlib.Path(__file__).parent\n"
        "with (home / 'calls').open('a') as file: print(*sys.argv[1:], file=file)\n"
        "outcome = json.loads((home / 'outcomes.json').read_text()).get(sys.argv[1], {'ok': True})\n"
        "time.sleep(outcome.get('sleeps', 0))\n"
        "if 'raises' in outcome: raise RuntimeError(outcome['raises'])\n"
        "print('some words')\n"
        "print(json.dumps(outcome))\n"
    )
    (tmp_path / "outcomes.json").write_text("{}")
    monkeypatch.setattr(cuda_validation, "__file__", str(tmp_path / "cuda_validation.py"))
    monkeypatch.setenv("BERTMON_VALIDATION", str(tmp_path / "work"))
    return tmp_path


def calls(parts: Path) -> list[str]:
    """The parts that were started since the last call."""
    path = parts / "calls"
    names = [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return names


def test_validation_runs_all_parts_in_order_and_repeats_none(parts):
    folder = str(parts / "out")
    assert cuda_validation.main([folder, "--rehearse", "model.tokenizer=here"]) == 0
    assert (parts / "calls").read_text().splitlines()[0].endswith("--rehearse model.tokenizer=here")
    assert calls(parts) == list(cuda_validation.PARTS) == list(cuda_parts.PARTS)
    assert cuda_validation.main([folder]) == 0
    assert calls(parts) == []
    assert cuda_validation.main([folder, "floor"]) == 0
    assert calls(parts) == ["floor"]


def test_validation_continues_into_a_new_folder(parts, monkeypatch):
    first = ["environment", "twins", "waits"]

    def clock() -> float:
        """0, and half a second less than a minute once the first parts have run."""
        return 59.5 * (len(record.read_text().splitlines()) >= len(first) if record.exists() else 0)

    record = parts / "calls"
    monkeypatch.setattr(cuda_validation, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(cuda_validation, "_LEAST_SECONDS", 0.1)
    (parts / "outcomes.json").write_text(json.dumps({"memory": {"sleeps": 600}}))
    assert cuda_validation.main([str(parts / "first"), "--minutes=1"]) == 0
    assert calls(parts) in (first, [*first, "memory"])  # interrupted, perhaps before its call was recorded
    assert list(json.loads((parts / "first/results.json").read_text())) == first
    (parts / "outcomes.json").write_text("{}")
    assert cuda_validation.main([str(parts / "second")]) == 0
    assert calls(parts)[0] == "memory"
    assert list(json.loads((parts / "second/results.json").read_text())) == list(cuda_validation.PARTS)


def test_validation_continues_from_the_results_alone(parts, monkeypatch):
    folder = parts / "out"
    assert cuda_validation.main([str(folder)]) == 0
    calls(parts)
    monkeypatch.setenv("BERTMON_VALIDATION", str(parts / "another machine"))
    assert cuda_validation.main([str(folder)]) == 0
    assert calls(parts) == []


def test_part_that_times_out_leaves_no_process(tmp_path):
    """Nor does a process that it started."""
    script = tmp_path / "part.sh"
    script.write_text(f"sleep 600 & echo $! > {tmp_path}/child; wait\n")
    with (tmp_path / "log").open("w") as log:
        assert cuda_validation.run_process(["sh", str(script)], dict(os.environ), log, 2) is None
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: not Path(f"/proc/{child}").exists())


def test_validation_reports_a_part_that_fails_and_runs_the_next_ones(parts, capsys):
    outcomes = {
        "twins": {"raises": "CUDA error: an illegal memory access"},
        "waits": {"ok": None},
        "floor": {"ok": False},
    }
    (parts / "outcomes.json").write_text(json.dumps(outcomes))
    assert cuda_validation.main([str(parts / "out")]) == 1
    assert calls(parts) == list(cuda_validation.PARTS)
    assert capsys.readouterr().out.endswith("not as expected: twins, floor; not done: nothing\n")
    results = json.loads((parts / "out/results.json").read_text())
    assert results["twins"]["ok"] is False
    assert results["twins"]["error"].endswith("RuntimeError: CUDA error: an illegal memory access")
    report = (parts / "out/report.md").read_text().splitlines()
    assert [line.split("|")[3].strip() for line in report[2:6]] == ["yes", "**no**", "skipped", "yes"]


@pytest.mark.parametrize("arguments", [[], ["out", "flor"], ["out", "--minute=3"]])
def test_validation_with_unknown_arguments_prints_the_usage(arguments):
    with pytest.raises(SystemExit, match=r"python benchmarks/cuda_validation\.py FOLDER"):
        cuda_validation.main(arguments)


def test_update_bytes_count_reads_and_writes():
    norm, clipping, adamw = 4, 8, 4 * 4 + 3 * 4
    assert cuda_parts.update_bytes(10) == 10 * (norm + clipping + adamw)


@pytest.fixture
def warm_parts(warm_python, monkeypatch):
    """Each part in its own process, without the seconds that its imports take."""

    def run(command, environment, stderr, seconds):
        process = warm_python.start("cuda_parts", command[2:], ROOT / "benchmarks", environment)
        output, errors = process.communicate(seconds)
        stderr.write(errors)
        return process.returncode, output

    monkeypatch.setattr(cuda_validation, "run_process", run)


@pytest.mark.slow
def test_rehearsal_runs_every_part(tmp_path, warm_parts, monkeypatch, capsys):
    """On the CPU or a GPU; parts that need CUDA are skipped on the CPU."""
    monkeypatch.setenv("BERTMON_VALIDATION", str(tmp_path / "work"))
    assert cuda_validation.main([str(tmp_path / "out"), "--rehearse", "--minutes=600"]) == 0, capsys.readouterr().out
    outcomes = json.loads((tmp_path / "out/results.json").read_text())
    assert list(outcomes) == list(cuda_validation.PARTS)
    skipped = {name for name, outcome in outcomes.items() if "skipped" in outcome}
    assert skipped == (set() if torch.cuda.is_available() else SKIPPED_ON_THE_CPU)
    assert outcomes["resume"] | {"took_seconds": 0} == {
        "ok": True,
        "fp32: bit for bit": True,
        "bf16: bit for bit": True,
        "took_seconds": 0,
    }
    assert outcomes["out_of_memory"]["of 16 finished"] == [True, True]
    with tarfile.open(tmp_path / "out/runs.tar.gz") as archive:
        names = [Path(name).name for name in archive.getnames()]
    assert sorted(set(names)) == ["history.npz", "result.json"]
    assert len(names) == 8  # two warm-ups of two seeds
