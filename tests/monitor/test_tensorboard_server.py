"""TensorBoard's own data on a sweep, requested over HTTP as by its pages."""

import json
import subprocess
import time
import urllib.request

import pytest
from conftest import TIMEOUT, small_run

from bertmon.compare.tensorboard import tensorboard_argv
from bertmon.config import VerdictThresholds
from bertmon.monitor.history import STATISTICS
from bertmon.training.run_training import run_training

NAMES = ["warmup_frac=0.1/seed=0", "warmup_frac=0.7/seed=0"]


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """A function that requests the JSON at a path from a TensorBoard of two finished runs."""
    folder = tmp_path_factory.mktemp("tensorboard")
    settings, sweep = small_run(folder), folder / "sweep"
    for name, warmup_frac in zip(NAMES, (0.1, 0.7), strict=True):
        (sweep / name).mkdir(parents=True)
        settings.schedule.warmup_frac = warmup_frac
        settings.monitor.every = 1
        settings.monitor.thresholds = VerdictThresholds(min_logit_std=1e3, min_depth_ratio=1e3)  # doomed at once
        overrides = {"schedule.warmup_frac": str(warmup_frac), "model": "bert_small"}
        run_training(settings, sweep / name, name=name, overrides=overrides)

    command = [*tensorboard_argv(sweep), "--host", "127.0.0.1", "--port", "0"]
    log = folder / "tensorboard.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def ask(path, body=None):
        address = log.read_text().split(" at ")[1].split()[0]
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return json.load(answer)

    def ready():
        return "Press CTRL+C" in log.read_text() and set(ask("data/plugin/images/tags")) == set(NAMES)

    try:
        end = time.monotonic() + TIMEOUT
        while not ready():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield ask
    finally:
        process.terminate()
        process.wait()


def test_tensorboard_lists_both_runs_with_everything(ask):
    assert ask("data/runs") == NAMES

    scalars = ask("data/plugin/scalars/tags")
    for name in NAMES:
        tags = set(scalars[name])
        assert {"loss/train", "loss/test", "accuracy/test", "learning_rate", "effective_learning_rate"} < tags
        assert {"grad_norm", "clipped", "depth_ratio", "logit_std", "update_per_lr/linear"} < tags
        assert {f"{statistic}/enc.l.1.attention.query" for statistic in STATISTICS} < tags
        headlines = [tag for tag in tags if tag.startswith("Headlines/")]
        assert sorted(tags)[: len(headlines)] == sorted(headlines)
        assert {"Headlines/loss_train", "Headlines/accuracy_test", "Headlines/log10_logit_std"} < set(headlines)

    images = ask("data/plugin/images/tags")
    for name in NAMES:
        assert set(images[name]) == {"gradient_depth", "gradient_flow", "update_ratio"}
        run = name.replace("=", "%3D").replace("/", "%2F")
        query = f"data/plugin/images/images?tag=gradient_flow&run={run}&sample=0"
        assert [image["step"] for image in ask(query)] == list(range(12))  # all of them, not the usual 10

    texts = ask("data/plugin/text/tags")
    assert all({"config/text_summary", "verdict/text_summary"} <= set(texts[name]) for name in NAMES)
    (verdict,) = ask(f"data/plugin/text/text?tag=verdict/text_summary&run={NAMES[0].replace('=', '%3D')}")
    assert verdict["step"] == 0
    assert "step 0: collapsed - gradients vanish towards the input" in verdict["text"]


def test_tensorboard_hparams_has_settings_verdicts_and_metrics(ask):
    statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    columns = [{"hparam": "schedule.warmup_frac"}, {"metric": {"tag": "accuracy/test"}}]
    groups = ask(
        "data/plugin/hparams/session_groups",
        {"experimentName": "", "allowedStatuses": statuses, "colParams": columns, "startIndex": 0, "sliceSize": 10},
    )["sessionGroups"]
    assert {group["name"]: group["hparams"] for group in groups} == {
        name: {
            "schedule.warmup_frac": warmup_frac,
            "model": "bert_small",
            "seed": 1,
            "verdict": "collapsed",
            "verdict_step": 0,
        }
        for name, warmup_frac in zip(NAMES, (0.1, 0.7), strict=True)
    }
    metrics = {metric["name"]["tag"]: metric["value"] for metric in groups[0]["metricValues"]}
    assert metrics.keys() == {"accuracy/test", "loss/test", "peak_effective_lr", "did_not_learn"}
    assert metrics["peak_effective_lr"] > 0
    assert metrics["did_not_learn"] in (0, 1)
