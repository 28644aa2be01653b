"""Check what only a GPU can show about bertmon, most valuable parts first, in about 20 minutes.

    python benchmarks/cuda_validation.py FOLDER [PART...] [--minutes=24] [--rehearse] [OVERRIDE...]

Each part runs in its own process (cuda_parts.py), so that a failure does not affect the others. FOLDER gets
results.json and report.md after each part, and at the end runs.tar.gz with the results and histories of the article's
runs. Parts with an outcome in the results.json of FOLDER or of the work folder ($BERTMON_VALIDATION, by default in the
temporary directory) are skipped: run it again to continue. Parts named on the command line are run again.

Without a network: data.data_home=FOLDER model.tokenizer=FOLDER. --rehearse runs every part at tiny sizes on any device,
without checking goals; parts that need CUDA are skipped. Exits with 1 if an outcome is not as expected.
"""

import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

PARTS = {
    "environment": "versions and device, which the numbers depend on",
    "twins": "20 steps on the CPU and on the GPU: the same losses",
    "waits": "no wait of the host in a step that is not monitored, at the article's shapes",
    "memory": "peak memory of the article's run compared with the prediction of fake tensors",
    "article": "640 steps with both warm-ups, from process start; goal 30 s a run",
    "resume": "a resumed run equals an uninterrupted one bit for bit (train.deterministic)",
    "out_of_memory": "a sweep continues after a run that is out of memory",
    "floor": "a step compared with its floor by the measured matrix rate and bandwidth; goal 50 % in bf16",
    "monitoring": "what monitoring costs every 30 steps and every step; goals 1.02 and 1.05",
    "trainer": "tokens/s compared with transformers' Trainer; goals 4 at its defaults, 1.3 at its best",
    "compile": "the compiled step: losses compared with the eager one, time, graphs",
    "seeds": "the article's runs with further seeds, as many as fit",
}
"""In order of value, with what each part shows."""
RESULTS = "results.json"
_LEAST_SECONDS = 5
"""With less time left, no part is started."""

Outcome = dict[str, Any]


def run_parts(
    folder: Path, work: Path, names: Sequence[str], *, again: bool, seconds: float, arguments: Sequence[str]
) -> dict[str, Outcome]:
    """Run the parts that have no outcome yet, until the time is up; returns all outcomes by part."""
    end = time.monotonic() + seconds
    outcomes: dict[str, Outcome] = {}
    for directory in (folder, work):
        outcomes |= json.loads(_read(directory / RESULTS, "{}"))
    for name in names:
        if name in outcomes and not again:
            continue
        left = end - time.monotonic()
        if left < _LEAST_SECONDS:
            print(f"{name}: no time left", flush=True)
            break
        outcome = _run_part(name, work, left, arguments)
        if outcome.get("timed_out"):
            print(f"{name}: stopped after {left:.0f} s, when time ran out", flush=True)
            break
        outcomes[name] = outcome
        print(f"{name}: {json.dumps(outcome)}", flush=True)
        _replace(work / RESULTS, json.dumps(outcomes, indent=1) + "\n")
        _publish(folder, outcomes)
    _publish(folder, outcomes)
    return outcomes


def _run_part(name: str, work: Path, seconds: float, arguments: Sequence[str]) -> Outcome:
    """The outcome that the part's process prints; `ok` is False if the process fails."""
    script = Path(__file__).with_name("cuda_parts.py")
    environment = os.environ | {"PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(script.parent), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(script), name, str(work), f"{seconds:.0f}", *arguments]
    started = time.monotonic()
    log = work / f"{name}.log"
    with log.open("w") as stderr:
        ended = run_process(command, environment, stderr, seconds)
    if ended is None:
        return {"timed_out": True}
    code, stdout = ended
    lines = stdout.splitlines()
    outcome: Outcome = json.loads(lines[-1]) if code == 0 and lines else {"ok": False}
    if code:
        outcome["error"] = _read(log, "").strip()[-2000:]
    return outcome | {"took_seconds": round(time.monotonic() - started, 1)}


def run_process(
    command: Sequence[str], environment: Mapping[str, str], stderr: IO[str], seconds: float
) -> tuple[int, str] | None:
    """Exit code and standard output; None after a timeout, when the process and its children have been killed."""
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
    ) as process:
        try:
            stdout, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its children too: they would keep using the GPU
            return None
    return process.returncode, stdout


def _publish(folder: Path, outcomes: Mapping[str, Outcome]) -> None:
    _replace(folder / RESULTS, json.dumps(outcomes, indent=1) + "\n")
    _replace(folder / "report.md", "".join(report_lines(outcomes)))


def report_lines(outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    """The outcomes as Markdown: a table of the parts, then what each measured."""
    yield "| part | shows | as expected | seconds |\n|---|---|---|---|\n"
    answers = {True: "yes", False: "**no**", None: "skipped"}
    for name, outcome in outcomes.items():
        yield f"| {name} | {PARTS[name]} | {answers[outcome.get('ok')]} | {outcome['took_seconds']} |\n"
    for name, outcome in outcomes.items():
        yield f"\n## {name}\n\n"
        for key, value in outcome.items():
            if key not in ("ok", "took_seconds"):
                yield f"- {key}: {value}\n"


def pack_runs(folder: Path, work: Path) -> None:
    """Archive the results and histories of the article's runs."""
    paths = sorted(path for path in (work / "article").rglob("*") if path.name in ("result.json", "history.npz"))
    if paths:
        with tarfile.open(folder / "runs.tar.gz", "w:gz") as archive:
            for path in paths:
                archive.add(path, str(path.relative_to(work)))


def _read(path: Path, default: str) -> str:
    return path.read_text() if path.exists() else default


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(path)


def main(words: Sequence[str]) -> int:
    """See the module's docstring."""
    flags = [word for word in words if word.startswith("--")]
    overrides = [word for word in words if "=" in word and word not in flags]
    names = [word for word in words if word not in flags and word not in overrides]
    minutes = float(next((flag.split("=")[1] for flag in flags if flag.startswith("--minutes=")), "24"))
    unknown = [flag for flag in flags if flag != "--rehearse" and not flag.startswith("--minutes=")]
    unknown += [name for name in names[1:] if name not in PARTS]
    if not names or unknown:
        sys.exit(f"{__doc__}\nunknown: {', '.join(unknown) or 'no folder was given'}; parts: {', '.join(PARTS)}")
    rehearsal = [flag for flag in flags if flag == "--rehearse"]
    default = Path(tempfile.gettempdir(), "bertmon_cuda_rehearsal" if rehearsal else "bertmon_cuda_validation")
    folder, work = Path(names[0]), Path(os.environ.get("BERTMON_VALIDATION", default))
    folder.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    outcomes = run_parts(
        folder,
        work,
        names[1:] or list(PARTS),
        again=len(names) > 1,
        seconds=60 * minutes,
        arguments=rehearsal + overrides,
    )
    pack_runs(folder, work)
    failed = [name for name, outcome in outcomes.items() if outcome["ok"] is False]
    missing = [name for name in PARTS if name not in outcomes]
    print(f"not as expected: {', '.join(failed) or 'nothing'}; not done: {', '.join(missing) or 'nothing'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
