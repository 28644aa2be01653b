"""The counts and the table of the comparison of training loops."""

import monitor_overhead
import pytest
import vs_trainer

from bertmon.training.task import build_task

SMALL = [
    "model.num_hidden_layers=2",
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "data.train_per_package=4",
    "device=cpu",
]


def test_overrides_take_precedence_over_the_setup():
    config = vs_trainer.config_of(2, ["train.batch_size=3", "train.epochs=7", "data.test_per_package=5"])
    assert (config.train.batch_size, config.train.epochs, config.data.test_per_package) == (3, 7, 5)


def test_training_tokens_match_the_batches():
    config = vs_trainer.config_of(1, SMALL)
    task = build_task(config, vs_trainer.torch.device("cpu"))
    _, tokens = vs_trainer.tokenize_training_texts(config, task)
    in_batches = sum(int(batch.attention_mask.sum()) for batch in task.train.epoch_batches(0, 0))
    assert int(sum(tokens.lengths)) == in_batches


def test_epoch_flops_of_one_token_are_six_per_weight_plus_attention():
    task = build_task(vs_trainer.config_of(1, SMALL), vs_trainer.torch.device("cpu"))
    weights = sum(p.numel() for name, p in task.classifier.named_parameters() if "embeddings" not in name)
    attention = 12 * 2 * 32
    assert vs_trainer.epoch_flops(task.classifier, vs_trainer.torch.tensor([1])) == 6 * weights + attention


def test_table_compares_rates_with_the_reference_of_the_same_round():
    slow, fast = vs_trainer.Epoch(100, 3.0, 5.0, 1.0), vs_trainer.Epoch(100, 1.5, 2.0, 0.25)
    text = "".join(vs_trainer.table({vs_trainer.REFERENCE: [slow, fast], "other": [fast, fast]}))
    assert text.splitlines()[-1] == ("| other | 200 (200 to 200) | 2.50 (1.00 to 4.00) | 0.50 | 0.25 | 50% | 1.0 |")


@pytest.mark.slow
def test_monitor_overhead_prints_a_row_for_each_variant(capsys):
    monitor_overhead.main(1, [*SMALL, "train.batch_size=16"])
    rows = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert rows == ["| watching", *(f"| {name}" for name in monitor_overhead.VARIANTS)]
