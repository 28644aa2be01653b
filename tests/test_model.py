import dataclasses
import sys
import warnings

import pytest
import torch
import transformers
from conftest import BUILD_MODEL, TINY, save_pretrained_bert
from safetensors import SafetensorError
from safetensors.torch import load_file

from bertmon import model
from bertmon.config import Init, ModelConfig
from bertmon.errors import InputError, StorageError
from bertmon.parameter_names import encoder_layer

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


def test_build_model_random_weights_depend_only_on_the_seed():
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


def test_named_weights_are_all_matrices_regardless_of_their_names():
    encoder = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
    kinds = {label: weight.kind for label, weight in model.named_weights(encoder).items()}
    assert list(kinds)[:6] == [
        "layers.0.self_attn.in_proj_weight",
        "layers.0.self_attn.out_proj",
        "layers.0.linear1",
        "layers.0.linear2",
        "layers.0.norm1",
        "layers.0.norm2",
    ]
    assert [*kinds.values()][:6] == ["linear"] * 4 + ["norm"] * 2
    assert list(model.named_weights(torch.nn.LSTM(3, 4))) == ["weight_ih_l0", "weight_hh_l0"]


def test_named_weights_of_two_adapters_are_distinct():
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(target_modules=["query"], r=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model.build_model(TINY, **BUILD_MODEL), lora)
        assert "enc.l.0.attention.query.lora_A" in model.named_weights(adapted)
        adapted.add_adapter("other", lora)
    adapted.set_adapter("default")
    trained, everything = model.named_weights(adapted), model.named_weights(adapted, frozen=True)
    active = [label for label in trained if "lora_A" in label and ".0." in label]
    assert active == ["base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.default.weight"]
    assert all(everything[label].parameter is weight.parameter for label, weight in trained.items())
    assert len(everything) > len(trained)


def test_encoder_layer_of_t5_is_its_block():
    assert encoder_layer("encoder.block.3.layer.1.DenseReluDense.wi.weight") == 3
    assert encoder_layer("bert.encoder.layer.3.output.dense.weight") == 3
    assert encoder_layer("shared.weight") is None


def test_named_weights_with_biases_leave_frozen_weights_out():
    built = model.build_model(TINY, **BUILD_MODEL)
    built.classifier.weight.requires_grad_(False)
    weights = model.named_weights(built, biases=True)
    assert weights["enc.l.0.attention.query.bias"].kind == "bias"
    assert weights["classifier.bias"].parameter is built.classifier.bias
    assert "classifier" not in weights
    assert not any(label.endswith(".bias") for label in model.named_weights(built))


def test_build_model_pretrained_loads_weights_under_a_new_classifier(tmp_path):
    weights = save_pretrained_bert(tmp_path)
    built = model.build_model(ModelConfig(init=Init.pretrained, name=str(tmp_path)), **BUILD_MODEL)
    assert built.training
    for name, tensor in built.bert.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert built.classifier.weight.shape == (2, 16)
    assert built.config.id2label == {0: "no", 1: "yes"}


def test_build_model_named_and_random_keeps_only_the_architecture(tmp_path):
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


def save_distilbert(folder):
    from transformers import DistilBertConfig, DistilBertModel

    small = {"vocab_size": 120, "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64}
    DistilBertModel(DistilBertConfig(**small)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("save", "removed"),
    [
        (save_pretrained_bert, "encoder.layer.1.output.dense.weight"),
        (save_distilbert, "transformer.layer.1.ffn.lin1.weight"),
    ],
)
def test_build_model_with_incomplete_weights_is_refused(tmp_path, save, removed):
    from safetensors.torch import load_file, save_file

    save(tmp_path)
    pretrained = ModelConfig(init=Init.pretrained, name=str(tmp_path))
    model.build_model(pretrained, **BUILD_MODEL)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[removed]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"lack .*{removed}"):
        model.build_model(pretrained, **BUILD_MODEL)


def test_build_model_tuned_for_other_classes_gets_a_new_classifier(tmp_path):
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


@pytest.mark.parametrize(("labels", "kept"), [(("no", "yes"), True), (("yes", "no"), False), (("sea", "sky"), False)])
def test_build_model_keeps_a_head_for_the_same_labels_only(tmp_path, labels, kept):
    save_checkpoint(
        tmp_path,
        "bert",
        head="AutoModelForSequenceClassification",
        id2label=dict(enumerate(labels)),
        problem_type="multi_label_classification",
    )
    head = load_file(tmp_path / "model.safetensors")["classifier.weight"]
    config = ModelConfig(init=Init.pretrained, name=str(tmp_path))
    torch.manual_seed(0)
    built = model.build_model(config, **BUILD_MODEL)
    assert torch.equal(built.classifier.weight, head) == kept
    assert 0.01 < built.classifier.weight.std() < 0.03  # initializer_range is 0.02
    assert built.config.problem_type == "single_label_classification"
    torch.manual_seed(1)
    other = model.build_model(config, **BUILD_MODEL)
    assert torch.equal(built.classifier.weight, other.classifier.weight) == kept
    assert torch.equal(built.bert.pooler.dense.weight, other.bert.pooler.dense.weight)


def test_build_model_of_xlnet_has_no_limit_of_positions():
    small = ModelConfig(model_type="xlnet", num_hidden_layers=1, hidden_size=128, num_attention_heads=2)
    built = model.build_model(small, **BUILD_MODEL | {"max_length": 5000})
    assert model.max_positions(built) == sys.maxsize
    assert model.max_positions(model.build_model(TINY, **BUILD_MODEL)) == 32


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


def test_build_model_with_only_a_pickle_is_refused(tmp_path):
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
def test_build_model_that_does_not_fit_the_task_is_refused(changes, task, message):
    with pytest.raises(InputError, match=message):
        model.build_model(dataclasses.replace(TINY, **changes), **(BUILD_MODEL | task))


def test_build_model_with_a_vocabulary_over_its_embeddings_is_refused(tmp_path):
    save_pretrained_bert(tmp_path)
    with pytest.raises(InputError, match=r"model\.tokenizer: expected at most 120 entries, .* got 121"):
        model.build_model(ModelConfig(name=str(tmp_path)), **(BUILD_MODEL | {"vocab_size": 121}))


FAMILIES = {  # keys of a tiny model, and its distinguishable encoder layers
    "bert": ({}, {0, 1}),
    "distilbert": ({"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2}, {0, 1}),
    "roberta": ({"type_vocab_size": 1, "pad_token_id": 0}, {0, 1}),
    "electra": ({"embedding_size": 8}, {0, 1}),
    "deberta-v2": (
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
        {0, 1},
    ),
    "modernbert": ({"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}, {0, 1}),
    "albert": ({"embedding_size": 8}, set()),
}
PAIRS = ({"distilbert", "roberta", "deberta-v2", "modernbert"}, {"bert", "electra", "albert"})  # without and with types


def save_checkpoint(folder, family, *, dtype=torch.float32, head="AutoModelForMaskedLM", **changes):
    """Save a tiny pretrained checkpoint of a family in its published format. Returns its weights."""
    import transformers

    small = {
        "vocab_size": 120,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    keys = FAMILIES[family][0]
    if family == "distilbert":
        small = {"vocab_size": 120, "max_position_embeddings": 64, "pad_token_id": 0}
    torch.manual_seed(7)
    config = transformers.AutoConfig.for_model(family, **(small | keys | changes))
    checkpoint = getattr(transformers, head).from_config(config).to(dtype)
    checkpoint.save_pretrained(folder)
    return checkpoint.base_model.state_dict()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["AutoModel", "AutoModelForMaskedLM"])
def test_build_model_of_a_family_loads_its_checkpoint(tmp_path, family, head):
    weights = save_checkpoint(tmp_path, family, head=head)
    config = ModelConfig(init=Init.pretrained, name=str(tmp_path))
    model.check_model(config, **BUILD_MODEL)
    built = model.build_model(config, **BUILD_MODEL)
    for name, tensor in built.base_model.state_dict().items():
        if "pooler" not in name:
            assert torch.equal(tensor, weights[name]), name
    depths = {weight.depth for weight in model.named_weights(built).values()}
    assert depths == FAMILIES[family][1] | {None}
    labels = list(model.named_weights(built))
    assert len(labels) == len(set(labels)) == sum(name.endswith("weight") for name, _ in built.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_build_model_of_a_family_trains_one_step_finitely(tmp_path, family):
    save_checkpoint(tmp_path, family)
    built = model.build_model(ModelConfig(init=Init.pretrained, name=str(tmp_path)), **BUILD_MODEL)
    ids = torch.randint(5, 120, (4, 16), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(16) < torch.tensor([[16], [3], [9], [12]])).int()
    types = {"token_type_ids": (torch.arange(16) >= 2).int() * mask} if model.has_token_types(built) else {}
    logits = built(input_ids=ids, attention_mask=mask, **types).logits
    assert logits.shape == (4, 2)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0, 1])).backward()
    for label, weight in model.named_weights(built).items():
        gradient = weight.parameter.grad
        assert gradient is None or gradient.isfinite().all(), label
    assert sum(weight.parameter.grad is not None for weight in model.named_weights(built).values()) > 10


@pytest.mark.parametrize("family", FAMILIES)
def test_has_token_types_is_true_for_families_with_two_types(tmp_path, family):
    save_checkpoint(tmp_path, family)
    built = model.build_model(ModelConfig(name=str(tmp_path)), **BUILD_MODEL)
    assert model.has_token_types(built) == (family in PAIRS[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_features_of_a_family_name_the_depth_ratio_only_for_albert(tmp_path, family):
    save_checkpoint(tmp_path, family)
    missing = model.missing_features(model.build_model(ModelConfig(name=str(tmp_path)), **BUILD_MODEL))
    if family == "albert":
        assert missing[0].startswith("depth_ratio: albert shares one set of weights among its layers")
    else:
        assert missing == []


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_layers_are_the_lowest_of_every_family(tmp_path, family):
    save_checkpoint(tmp_path, family)
    for init in Init:
        config = ModelConfig(init=init, name=str(tmp_path), frozen_layers=1)
        if family == "albert":
            with pytest.raises(
                InputError, match="frozen_layers: expected at most the 0 encoder layers with weights of"
            ):
                model.build_model(config, **BUILD_MODEL)
            continue
        built = model.build_model(config, **BUILD_MODEL)
        trained = model.named_weights(built)
        frozen = {
            label: weight for label, weight in model.named_weights(built, frozen=True).items() if label not in trained
        }
        assert {weight.depth for weight in frozen.values()} == {None, 0}
        assert 0 not in {weight.depth for weight in trained.values()}
        assert [label for label, weight in frozen.items() if weight.depth is None and "embeddings" not in label] == []
        assert [label for label in trained if "embeddings" in label] == []
        assert "has fewer than two encoder layers that train" in model.missing_features(built)[0]


@pytest.mark.parametrize(("family", "embeddings"), [("xlnet", "word_embedding"), ("llama", "embed_tokens")])
def test_frozen_layers_include_embeddings_of_any_name(family, embeddings):
    small = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    small |= {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32} if family == "xlnet" else {}
    config = transformers.AutoConfig.for_model(family, vocab_size=50, num_labels=2, **small)
    built = transformers.AutoModelForSequenceClassification.from_config(config)
    model._freeze_lowest(built, 0)
    frozen = [name for name, parameter in built.named_parameters() if not parameter.requires_grad]
    assert [name.split(".")[-2] for name in frozen] == [embeddings]


def test_frozen_layers_of_a_model_with_a_decoder_are_refused():
    config = transformers.AutoConfig.for_model("bart", d_model=16, encoder_layers=1, decoder_layers=1, vocab_size=50)
    with torch.device("meta"):
        built = transformers.AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(InputError, match="frozen_layers: expected null for bart, which has a decoder, got 1"):
        model._freeze_lowest(built, 1)


def test_missing_features_of_one_layer_name_the_depth_ratio():
    one = model.build_model(dataclasses.replace(TINY, num_hidden_layers=1), **BUILD_MODEL)
    assert model.missing_features(one) == [
        "depth_ratio: bert has fewer than two encoder layers, so there are no gradients of single layers to compare"
    ]


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_build_model_stored_in_bfloat16_is_float32(tmp_path, family):
    weights = save_checkpoint(tmp_path, family, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.bfloat16}
    for init in Init:
        built = model.build_model(ModelConfig(init=init, name=str(tmp_path)), **BUILD_MODEL)
        assert {parameter.dtype for parameter in built.parameters()} == {torch.float32}
        assert built.config.dtype in (None, torch.float32)
    name = next(name for name in weights if name.endswith("weight"))
    assert torch.equal(built.base_model.state_dict()[name], weights[name].float())


# --- saving ----------------------------------------------------------------------------------------

TRAINING_TEXTS = ["the boat and the wave", "a bird in the wind", "ACGT" * 40, "salt, fish & stars!"]
LABELS = ("sea", "sky", "other")


def train_tokenizer(cache):
    from bertmon.data import tokenize

    return tokenize.load_tokenizer(TINY, TRAINING_TEXTS, cache)


def logits_of(built, tokenizer, text, max_length):
    """The logits that a run computes."""
    encoder = type(tokenizer.tokenizer).from_str(tokenizer.tokenizer.to_str())
    encoder.enable_truncation(max_length)
    ids = torch.tensor([encoder.encode(text).ids])
    with torch.no_grad():
        return built(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("origin", ["own", "checkpoint"])
def test_save_model_gives_a_folder_that_transformers_loads(tmp_path, family, origin):
    import transformers

    from bertmon.data import tokenize

    tokenizer = train_tokenizer(tmp_path)
    save_checkpoint(tmp_path / "checkpoint", family)
    if origin == "checkpoint":
        tokenizer.to_transformers(64).save_pretrained(tmp_path / "checkpoint")
        tokenizer = tokenize.load_tokenizer(ModelConfig(name=str(tmp_path / "checkpoint")), [], tmp_path)
    config = ModelConfig(init=Init.pretrained, name=str(tmp_path / "checkpoint"))
    built = model.build_model(config, label_names=LABELS, vocab_size=tokenizer.size, pad_id=0, max_length=16).eval()
    folder = tmp_path / "run" / "model"
    folder.parent.mkdir()
    model.save_model(built, tokenizer, folder, 16)
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert [path.name for path in folder.parent.iterdir()] == ["model"]

    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    for name, tensor in built.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.config.id2label == dict(enumerate(LABELS))
    loaded_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert loaded_tokenizer.model_max_length == 16
    pipeline = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    for text in [*TRAINING_TEXTS, "the wave " * 30]:
        expected = logits_of(built, tokenizer, text, 16)
        ids = loaded_tokenizer(text, truncation=True)["input_ids"]
        assert ids == tokenize.tokenize(tokenizer, [text], 16, tmp_path).ids.tolist()
        scores = pipeline(text, truncation=True, top_k=None)
        assert [score["label"] for score in scores] == [LABELS[label] for label in expected.argsort(descending=True)]
        assert torch.allclose(
            torch.tensor([score["score"] for score in scores]), expected.softmax(0).sort(descending=True)[0], atol=1e-6
        )


def test_save_model_replaces_an_earlier_model_and_keeps_it_on_failure(tmp_path, monkeypatch):
    def full_disk(folder):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    tokenizer = train_tokenizer(tmp_path / "cache")
    built = model.build_model(TINY, label_names=LABELS, vocab_size=tokenizer.size, pad_id=0, max_length=16)
    folder = tmp_path / "model"
    model.save_model(built, tokenizer, folder, 16)
    (folder / "left from before").touch()

    class FailingTokenizer:
        def to_transformers(self, max_length):
            saved = tokenizer.to_transformers(max_length)
            saved.save_pretrained = lambda path: (_ for _ in ()).throw(OSError(28, "No space left on device"))
            return saved

    with pytest.raises(StorageError, match=f"could not write {folder}: No space left on device"):
        model.save_model(built, FailingTokenizer(), folder, 16)
    monkeypatch.setattr(built, "save_pretrained", full_disk)
    with pytest.raises(StorageError, match=f"could not write {folder}: I/O error: No space left on device"):
        model.save_model(built, tokenizer, folder, 16)
    monkeypatch.undo()
    assert (folder / "left from before").exists()
    model.save_model(built, tokenizer, folder, 16)
    assert not (folder / "left from before").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "model"]


def test_save_model_does_not_change_the_model(tmp_path):
    tokenizer = train_tokenizer(tmp_path / "cache")
    built = model.build_model(TINY, label_names=LABELS, vocab_size=tokenizer.size, pad_id=0, max_length=16)
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    model.save_model(built, tokenizer, tmp_path / "m", 16)
    assert built.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in built.state_dict().items())
