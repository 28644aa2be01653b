"""The output of bertmon range."""

import copy
import functools
import re
import shlex

import numpy as np
import pytest

from bertmon.config import RunConfig
from bertmon.launch import rate_range
from bertmon.launch.compose import load_config
from bertmon.training.plan import plan_run
from bertmon.training.rate_range import RateRange

OVERRIDES = ["experiment=quickstart", "optimizer.lr=1e-3", "schedule.warmup_frac=0.2"]


@functools.cache
def default_config() -> RunConfig:
    return load_config(OVERRIDES)


def outcome(last: float, broke: bool = True) -> RateRange:
    return RateRange(plan_run(default_config(), 225, 1.4), steps=200, last_rate=last, failed=broke)


def report(last: float, broke: bool = True) -> list[str]:
    return rate_range.report(default_config(), outcome(last, broke), 2.0, 1e-4, OVERRIDES)


def test_command_keeps_the_distance_from_the_cliff_and_no_more():
    lines = report(3e-3)
    assert max(map(len, lines[:-1])) <= 80
    words = shlex.split(lines[-1])
    overrides = words[words.index("run") + 1 :]
    assert overrides[:2] == ["experiment=quickstart", "schedule.warmup_frac=0.2"]
    peak, limit = plan_run(load_config(overrides), 225, 1.4).effective_lr.max(), outcome(3e-3).cliff / 2
    assert 0.9 * limit < peak <= limit


def test_every_rate_of_the_table_keeps_the_distance():
    lines = report(3e-3)
    header = next(number for number, line in enumerate(lines) if line.startswith("schedule.warmup_frac "))
    rows = [line.split() for line in lines[header + 1 : -2]]
    assert [float(row[0]) for row in rows] == [0, 0.06, 0.1, 0.2, 0.3, 0.5, 0.7]
    config = copy.deepcopy(default_config())
    for warmup, *rates in rows:
        config.schedule.warmup_frac = float(warmup)
        for rate, config.optimizer.bias_correction in zip(rates, (False, True), strict=True):
            config.optimizer.lr = float(rate)
            peak = plan_run(config, 225, 1.4).effective_lr.max()
            assert 0.9 < peak / (outcome(3e-3).cliff / 2) <= 1.0


def test_table_leaves_out_warm_ups_that_the_decay_leaves_no_room_for():
    stable = ["schedule=warmup_stable_decay", "schedule.decay_frac=0.5", "schedule.warmup_frac=0.1"]
    config = load_config(["experiment=quickstart", *stable])
    rates = RateRange(plan_run(config, 3, 1.4), steps=200, last_rate=3e-3, failed=True)
    lines = rate_range.report(config, rates, 2.0, 1e-4, stable)
    assert [line.split()[0] for line in lines if re.match(r"0[ .\d]* ", line)] == ["0", "0.06", "0.1", "0.3"]


def test_plan_of_one_step_in_the_warm_up_has_no_rates():
    config = load_config(["experiment=quickstart", "schedule.warmup_frac=1", "train.epochs=1"])
    rates = RateRange(plan_run(config, 1, 1.4), steps=200, last_rate=3e-3, failed=True)
    (line,) = rate_range.report(config, rates, 2.0, 1e-4, [])
    assert line.endswith("The learning rate of this plan is 0 at every step.")


@pytest.mark.parametrize(
    ("last", "side"), [(1e-3, "above it"), (6e-3, "below it, but not by that factor"), (2e-2, "below it")]
)
def test_report_says_on_which_side_of_the_cliff_the_plan_is(last, side):
    text = "\n".join(report(last))
    assert f": {side}." in text
    assert "start lower" not in text


def test_report_of_a_run_that_broke_early_says_to_start_lower():
    assert any("start lower, with --from 1e-5" in line for line in report(5e-4))


def test_table_leaves_out_warmups_that_leave_no_room_for_the_decay():
    overrides = [*OVERRIDES, "schedule=warmup_stable_decay", "schedule.decay_frac=0.6"]
    lines = rate_range.report(load_config(overrides), outcome(3e-3), 2.0, 1e-4, overrides)
    header = next(number for number, line in enumerate(lines) if line.startswith("schedule.warmup_frac "))
    assert [float(line.split()[0]) for line in lines[header + 1 : -2]] == [0, 0.06, 0.1, 0.2, 0.3]


def test_command_names_the_folder_of_presets(tmp_path, demo_files, monkeypatch, capsys):
    monkeypatch.setattr(rate_range, "find_cliff", lambda *_: outcome(3e-3))
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults: [quickstart]\n")
    rate_range.main(["--config-dir", str(tmp_path), "experiment=mine", *demo_files[1:]])
    command = capsys.readouterr().out.splitlines()[-1]
    assert f" -m bertmon run --config-dir {tmp_path} experiment=mine data=files " in command


def test_report_without_a_cliff_is_one_line():
    assert report(2e-2, broke=False) == ["No cliff found: training does not fail at effective rates up to 2e-2."]


def test_rates_are_rounded_down_to_two_digits():
    assert [rate_range._round_down(rate) for rate in (1.999e-3, 3.0e-4, np.float64(0.5))] == ["1.9e-3", "3e-4", "0.5"]


def test_range_of_a_real_run_leaves_no_files(demo_files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = set(tmp_path.iterdir())
    rate_range.main([*demo_files, f"cache_dir={tmp_path.parent / 'cache'}", "--from", "1e-4", "--to", "1.1e-4"])
    assert capsys.readouterr().out.startswith("No cliff found: training does not fail at effective rates up to 1.1e-4")
    assert set(tmp_path.iterdir()) == files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--distance", "0.5"], "--distance: expected a finite factor of at least 1, got 0.5."),
        (["--from", "0"], "--from: expected a finite rate above 0, got 0.0."),
        (["--from", "1e-3", "--to", "1e-4"], "--to: expected a finite rate above --from, got 0.0001."),
        (["optimizer.lr=1e-3,1e-4"], "optimizer.lr: expected one value, as range plans a single run, got 1e-3,1e-4."),
        (["optimizer.lr=-1"], "optimizer.lr: expected a finite number above 0, got -1.0."),
        (["train.clip=1"], "train.clip was renamed to train.max_grad_norm."),
        (["data=files"], "data.train: expected a value, got none; give data.train=..."),
        (
            ["experiment=quickstart", "model.hidden_size=130", "model.num_attention_heads=null"],
            "model: cannot build bert: The hidden size (130) is not a multiple of the number of attention heads (12)",
        ),
    ],
)
def test_invalid_input_is_one_message(arguments, message):
    with pytest.raises(SystemExit) as end:
        rate_range.main(arguments)
    assert end.value.code == message
