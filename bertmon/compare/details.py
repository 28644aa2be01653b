"""Title of a sweep's report, and the details of its runs at the top."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bertmon.compare.results import RunSummary, Sweep, short_names
from bertmon.notation import format_percent, format_value
from bertmon.result import RunResult, Status, SweepFile
from bertmon.sanitize import sanitize, sanitize_line

Values = Mapping[str, Any]
"""A config by dotted key, with "swept" instead of swept values."""


def title(sweep: Sweep) -> str:
    """Model, data and swept keys; the names of the folders if no config is known."""
    known = _known_runs(sweep)
    model, data = _common(known, _model_name), _common(known, _data_name)
    subject = " on ".join(part for part in (model, data) if part)
    short = short_names(sweep.swept)
    swept = "; ".join(_swept(sweep, key, short[key]) for key in sweep.swept)
    folders = ", ".join(folder.resolve().name for folder in sweep.folders)
    return sanitize_line(": ".join(part for part in (subject, swept) if part) or folders, 500)


def details(sweep: Sweep) -> list[tuple[str, str]]:
    """Label and text of each known fact; several texts if runs differ."""
    known = _known_runs(sweep)
    facts: list[tuple[str, Callable[[RunResult, Values], str]]] = [
        ("Data", _data),
        ("Model", _model),
        ("Optimizer", lambda result, values: _optimizer(values)),
        ("Schedule", _schedule),
        ("Batch", lambda result, values: _batch(values)),
        ("Device", lambda result, values: _device(result)),
        ("Versions", lambda result, values: ", ".join(f"{name} {text}" for name, text in result.versions.items())),
    ]
    swept = dict.fromkeys(sweep.swept, "swept")
    lines = [
        (label, _join_distinct([text(run.result, {**run.values, **swept}) for run in known if run.result]))
        for label, text in facts
    ]
    warnings = dict.fromkeys(warning for run in known if run.result for warning in run.result.warnings)
    lines.append(("Warnings", "\n".join(sanitize_line(warning, 500) for warning in warnings)))
    starts = [run.result.started for run in sweep.runs if run.result and run.result.started]
    lines.append(("Started", min(starts, default="").replace("T", " ")[:16]))
    files = [SweepFile.read(folder) for folder in sweep.folders]
    commands = [launch.command for file in files if file for launch in file.launches if launch.command]
    command_lines = [shlex.join(["python", "-m", "bertmon.run", *command]) for command in commands]
    lines.append(("Command", "\n".join(command_lines)))
    lines.append(("Folder", "\n".join(str(folder.resolve()) for folder in sweep.folders)))
    return [(label, sanitize(text, longest=100_000)) for label, text in lines if text]


def resume_commands(sweep: Sweep) -> list[str]:
    """Commands that resume the launches with interrupted runs."""
    interrupted = [run for run in sweep.runs if run.status == Status.interrupted]
    folders = [each for each in sweep.folders if any(run.run_dir.is_relative_to(each) for run in interrupted)]
    launches = [each for each in folders if SweepFile.read(each)]
    return [shlex.join(["python", "-m", "bertmon", "resume", str(each.resolve())]) for each in launches]


def _swept(sweep: Sweep, key: str, name: str) -> str:
    """A swept key with its values, or with their number if there are many."""
    values = dict.fromkeys(sweep.label(key, setting.values[key]) for setting in sweep.settings if key in setting.values)
    return f"{name} = {', '.join(values)}" if len(values) <= 6 else f"{len(values)} values of {name}"


def _known_runs(sweep: Sweep) -> list[RunSummary]:
    """One run with a known config for each setting that has one."""
    runs = [next((run for run in setting.runs if run.values), None) for setting in sweep.settings]
    return [run for run in runs if run]


def _common(runs: Sequence[RunSummary], text: Callable[[Values], str]) -> str:
    """The text that all runs share; empty if they differ."""
    texts = {text(run.values) for run in runs}
    return texts.pop() if len(texts) == 1 else ""


def _join_distinct(texts: Sequence[str]) -> str:
    """The distinct texts in one line, or the first three and the number of the rest."""
    distinct = [each for each in dict.fromkeys(texts) if each]
    more = f" and {len(distinct) - 3} more" if len(distinct) > 3 else ""
    return sanitize_line(" / ".join(distinct[:3]) + more, 2000)


def _data_name(values: Values) -> str:
    if values.get("data.packages"):
        return "docstrings"
    if values.get("data.categories"):
        return "20 newsgroups"
    named = [format_value(values[key]) for key in ("data.name", "data.subset", "data.train") if values.get(key)]
    return " ".join(named)


def _data(result: RunResult, values: Values) -> str:
    data = result.data
    if data is None:
        return _data_name(values)
    names = data.label_names
    classes = f"{len(names)} classes ({', '.join(names)})" if len(names) <= 8 else f"{len(names)} classes"
    sizes = f"{data.train_texts} texts to train on, {data.test_texts} to test on"
    majority = f"most frequent class {format_percent(data.majority_share)}"
    return ", ".join(part for part in (_data_name(values), sizes, classes if names else "", majority) if part)


def _model_name(values: Values) -> str:
    if values.get("model.name"):
        return format_value(values["model.name"])
    depth, width = values.get("model.num_hidden_layers"), values.get("model.hidden_size")
    return f"{_family(values)} ({depth} layers, width {width})" if depth and width else ""


def _family(values: Values) -> str:
    family = values.get("model.model_type") or "bert"
    return "BERT" if family == "bert" else str(family)


def _model(result: RunResult, values: Values) -> str:
    parameters = f"{result.parameters / 1e6:.1f} M parameters" if result.parameters else ""
    weights = f"{values['model.init']} weights" if values.get("model.init") else ""
    layers = values.get("model.frozen_layers")
    lowest = f" and {layers} of the encoder layers" if layers else ""
    frozen = "" if layers is None else f"embeddings{lowest} frozen"
    return ", ".join(part for part in (_model_name(values) or _family(values), parameters, weights, frozen) if part)


def _optimizer(values: Values) -> str:
    correction = {True: "bias correction", False: "no bias correction"}.get(
        values["optimizer.bias_correction"], "bias correction swept"
    )
    keys = ("lr", "beta1", "beta2", "eps", "weight_decay")
    lr, beta1, beta2, eps, decay = (format_value(values[f"optimizer.{key}"]) for key in keys)
    clip = values.get("train.max_grad_norm")
    clipping = "no clipping" if clip is None else f"gradients clipped at {format_value(clip)}"
    layers, head = values.get("optimizer.layer_decay"), values.get("optimizer.head_lr")
    scaled = "" if layers == 1 else f" (x {format_value(layers)} for each layer below the head)"
    scaled += "" if head is None else f" ({format_value(head)} for the head)"
    adam = f"AdamW, learning rate {lr}{scaled}, {correction}, betas {beta1} and {beta2}, eps {eps}"
    return f"{adam}, weight decay {decay}, {clipping}"


def _schedule(result: RunResult, values: Values) -> str:
    steps, own = values["schedule.warmup_steps"], values["schedule.function"]
    warmup = f"warm-up {format_value(values['schedule.warmup_frac'])}" if steps is None else f"{steps} warm-up steps"
    decay = f"{values['schedule.decay']} decay" if own is None else f"schedule {own}"
    epochs = f"{values['train.epochs']} epoch{'s' if values['train.epochs'] != 1 else ''}"
    planned = f"{result.total_steps} steps" if result.total_steps else ""
    return ", ".join(part for part in (warmup, decay, epochs, planned) if part)


def _batch(values: Values) -> str:
    size, length, parts = values["train.batch_size"], values["data.max_length"], values["train.accumulate"]
    accumulated = "" if parts == 1 else f" x {parts} accumulated"
    return f"{size}{accumulated} texts, at most {length} tokens each, {values['train.precision']}"


def _device(result: RunResult) -> str:
    name = ", ".join(str(result.device[key]) for key in ("type", "name") if result.device.get(key))
    return name + (f", {result.processes} processes" if result.processes > 1 else "")
