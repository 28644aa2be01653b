import dataclasses

import pytest
import torch
from conftest import BUILD_MODEL, TINY, save_pretrained_bert

from bertmon import model
from bertmon.config import Init, ModelConfig
from bertmon.errors import InputError

BERT_BASE_LAYER = [
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
]


def test_build_model_random_weights_depend_on_the_seed_alone():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in model.build_model(TINY, **BUILD_MODEL).parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_named_weights_of_bert_base_have_102_short_labels():
    config = dataclasses.replace(
        TINY, num_hidden_layers=12, hidden_size=12, num_attention_heads=12, intermediate_size=12
    )
    weights = model.named_weights(model.build_model(config, **BUILD_MODEL))
    assert list(weights) == [
        "embeddings.word_embeddings",
        "embeddings.position_embeddings",
        "embeddings.token_type_embeddings",
        "embeddings.LayerNorm",
        *(f"enc.l.{number}.{part}" for number in range(12) for part in BERT_BASE_LAYER),
        "pooler.dense",
        "classifier",
    ]
    assert len(weights) == 102
    kinds = {label: weight.kind for label, weight in weights.items()}
    assert kinds["embeddings.word_embeddings"] == "embedding"
    assert kinds["enc.l.3.attention.query"] == kinds["classifier"] == "linear"
    assert kinds["enc.l.3.output.LayerNorm"] == kinds["embeddings.LayerNorm"] == "norm"
    depths = {label: weight.depth for label, weight in weights.items()}
    assert depths["enc.l.0.attention.query"] == 0
    assert depths["enc.l.11.output.dense"] == 11
    assert depths["embeddings.word_embeddings"] is depths["pooler.dense"] is depths["classifier"] is None


@pytest.mark.parametrize("family", ["distilbert", "roberta-prelayernorm", "electra"])
def test_named_weights_of_other_families_have_depths(family):
    config = model.ModelConfig(model_type=family, num_hidden_layers=3, hidden_size=12, num_attention_heads=2)
    weights = model.named_weights(model.build_model(config, **BUILD_MODEL))
    assert {weight.depth for weight in weights.values()} == {None, 0, 1, 2}


def test_named_weights_of_a_sequential_head_have_no_depth():
    head = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    assert {weight.depth for weight in model.named_weights(torch.nn.ModuleDict({"classifier": head})).values()} == {
        None
    }


def test_named_weights_with_biases_leave_frozen_weights_out():
    built = model.build_model(TINY, **BUILD_MODEL)
    built.classifier.weight.requires_grad_(False)
    weights = model.named_weights(built, biases=True)
    assert weights["enc.l.0.attention.query.bias"].kind == "bias"
    assert weights["classifier.bias"].parameter is built.classifier.bias
    assert "classifier" not in weights
    assert not any(label.endswith(".bias") for label in model.named_weights(built))


def test_build_model_pretrained_loads_weights_under_a_fresh_classifier(tmp_path):
    weights = save_pretrained_bert(tmp_path)
    built = model.build_model(ModelConfig(init=Init.pretrained, name=str(tmp_path)), **BUILD_MODEL)
    assert built.training
    for name, tensor in built.bert.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert built.classifier.weight.shape == (2, 16)
    assert built.config.id2label == {0: "no", 1: "yes"}


def test_build_model_named_and_random_keeps_the_architecture_alone(tmp_path):
    weights = save_pretrained_bert(tmp_path)
    built = model.build_model(ModelConfig(name=str(tmp_path)), **BUILD_MODEL)
    name = "encoder.layer.0.attention.self.query.weight"
    assert built.bert.state_dict()[name].shape == weights[name].shape
    assert not torch.equal(built.bert.state_dict()[name], weights[name])


def test_build_model_of_another_family_has_distinct_labels():
    config = dataclasses.replace(TINY, model_type="roberta-prelayernorm", max_position_embeddings=64)
    labels = list(model.named_weights(model.build_model(config, **BUILD_MODEL)))
    assert "enc.l.1.attention.query" in labels
    assert len(labels) == len(set(labels))


def saved_distilbert(folder):
    from transformers import DistilBertConfig, DistilBertModel

    small = {"vocab_size": 120, "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64}
    DistilBertModel(DistilBertConfig(**small)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("save", "lost"),
    [
        (save_pretrained_bert, "encoder.layer.1.output.dense.weight"),
        (saved_distilbert, "transformer.layer.1.ffn.lin1.weight"),
    ],
)
def test_build_model_with_incomplete_weights_is_refused(tmp_path, save, lost):
    from safetensors.torch import load_file, save_file

    save(tmp_path)
    pretrained = ModelConfig(init=Init.pretrained, name=str(tmp_path))
    model.build_model(pretrained, **BUILD_MODEL)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"lack .*{lost}"):
        model.build_model(pretrained, **BUILD_MODEL)


def test_build_model_tuned_for_other_classes_gets_a_fresh_classifier(tmp_path):
    from transformers import AutoModelForSequenceClassification

    save_pretrained_bert(tmp_path / "bert")
    three = dict(BUILD_MODEL, label_names=("a", "b", "c"))
    model.build_model(ModelConfig(init=Init.pretrained, name=str(tmp_path / "bert")), **three).save_pretrained(
        tmp_path / "three"
    )
    tuned = AutoModelForSequenceClassification.from_pretrained(tmp_path / "three")
    built = model.build_model(ModelConfig(init=Init.pretrained, name=str(tmp_path / "three")), **BUILD_MODEL)
    assert built.classifier.weight.shape == (2, 16)
    assert torch.equal(built.bert.pooler.dense.weight, tuned.bert.pooler.dense.weight)


@pytest.mark.parametrize(("key", "value"), [("intermediate_size", 8), ("hidden_dropout_prob", 0.5)])
def test_build_model_with_a_key_the_family_lacks_is_refused(key, value):
    config = ModelConfig(model_type="distilbert", num_hidden_layers=1, hidden_size=24, num_attention_heads=2)
    assert len(model.build_model(config, **BUILD_MODEL).distilbert.transformer.layer) == 1
    with pytest.raises(
        InputError, match=rf"model\.{key}: expected no value, because distilbert has no such key, got {value}"
    ):
        model.build_model(dataclasses.replace(config, **{key: value}), **BUILD_MODEL)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(hidden_size=16), "cannot build bert: .*16"),
        (
            ModelConfig(model_type="roberta", max_position_embeddings=32),
            "expected at most the model's 31 positions, got 32",
        ),
        (ModelConfig(init=Init.pretrained, name="EMPTY"), "expected a folder with model.safetensors"),
        (ModelConfig(init=Init.pretrained, name="CORRUPT"), "could not read .*model.safetensors"),
    ],
)
def test_check_model_that_cannot_be_built_is_refused_without_weights(tmp_path, config, message):
    for name in ("EMPTY", "CORRUPT"):
        save_pretrained_bert(tmp_path / name)
    (tmp_path / "EMPTY" / "model.safetensors").unlink()
    (tmp_path / "CORRUPT" / "model.safetensors").write_bytes(b"no header here")
    if config.name:
        config = dataclasses.replace(config, name=str(tmp_path / config.name))
    model.check_model(TINY, **BUILD_MODEL)
    with pytest.raises(InputError, match=message):
        model.check_model(config, **BUILD_MODEL)


def test_build_model_with_corrupt_weights_is_refused(tmp_path):
    save_pretrained_bert(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no header here")
    with pytest.raises(InputError, match="could not load a model"):
        model.build_model(ModelConfig(init=Init.pretrained, name=str(tmp_path)), **BUILD_MODEL)


def test_build_model_with_a_pickle_alone_is_refused(tmp_path):
    weights = save_pretrained_bert(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="could not load a model"):
        model.build_model(ModelConfig(init=Init.pretrained, name=str(tmp_path)), **BUILD_MODEL)


@pytest.mark.parametrize(
    ("changes", "task", "message"),
    [
        ({"model_type": "nonsense"}, {}, r"model\.model_type: expected a model family .*, got nonsense"),
        (
            {"model_type": "clip_vision_model"},
            {},
            "expected a model that transformers has a sequence classifier for, got clip",
        ),
        ({}, {"max_length": 33}, r"data\.max_length: expected at most the model's 32 positions, got 33"),
    ],
)
def test_build_model_that_does_not_fit_is_refused(changes, task, message):
    with pytest.raises(InputError, match=message):
        model.build_model(dataclasses.replace(TINY, **changes), **(BUILD_MODEL | task))


def test_build_model_with_a_vocabulary_over_its_embeddings_is_refused(tmp_path):
    save_pretrained_bert(tmp_path)
    with pytest.raises(InputError, match=r"model\.tokenizer: expected at most 120 entries, .* got 121"):
        model.build_model(ModelConfig(name=str(tmp_path)), **(BUILD_MODEL | {"vocab_size": 121}))
