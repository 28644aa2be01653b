"""experiment=glue_rte on generated pairs, since the tests do not access the hub."""

import pytest
import torch
from conftest import TINY_OVERRIDES

from bertmon.config import Precision
from bertmon.launch.compose import load_config
from bertmon.training.step import compute_logits
from bertmon.training.task import build_task

datasets = pytest.importorskip("datasets")


def save_rte(folder, count):
    """Save a data set with GLUE's columns: does the second sentence follow from the first?"""
    labels = [number % 2 for number in range(count)]
    rows = {
        "sentence1": [f"a boat {number} on a wave" for number in range(count)],
        "sentence2": [f"a {('wave', 'bird')[label]}" for label in labels],
        "label": labels,
        "idx": list(range(count)),
    }
    features = datasets.Features(
        {
            "sentence1": datasets.Value("string"),
            "sentence2": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["entailment", "not_entailment"]),
            "idx": datasets.Value("int32"),
        }
    )
    split = datasets.Dataset.from_dict(rows, features=features)
    hidden = split.map(lambda row: row | {"label": -1})
    datasets.DatasetDict(train=split, validation=split.select(range(8)), test=hidden).save_to_disk(str(folder))
    return str(folder)


@pytest.fixture
def experiment(tmp_path):
    """Compose experiment=glue_rte over a saved data set, with a tiny model."""
    name = save_rte(tmp_path / "rte", 40)

    def composed(*overrides):
        own = [f"data.name={name}", "data.subset=null", "model=bert_small", "model.name=null", *TINY_OVERRIDES]
        return load_config(["experiment=glue_rte", *own, f"cache_dir={tmp_path / 'cache'}", "device=cpu", *overrides])

    return composed


def test_glue_rte_on_saved_pairs_builds_a_task_with_token_types(experiment):
    task = build_task(experiment(), torch.device("cpu"))
    assert task.corpus.label_names == ("entailment", "not_entailment")
    assert (len(task.corpus.train), len(task.corpus.test)) == (40, 8)
    batch = next(task.train.epoch_batches(0, 0))
    assert batch.token_type_ids.sum() == 8 * len(["a", "wave", "[SEP]"])
    torch.nn.functional.cross_entropy(compute_logits(task.classifier, batch, Precision.fp32), batch.labels).backward()
    assert task.classifier.bert.embeddings.token_type_embeddings.weight.grad.abs().sum(dim=1).gt(0).all()


def test_glue_rte_follows_the_recipe_of_its_source(experiment):
    run = experiment("data.max_length=128")
    assert (run.optimizer.lr, run.optimizer.bias_correction, run.schedule.warmup_frac) == (2e-5, True, 0.1)
    assert (run.train.epochs, run.data.test_split) == (20, "validation")
