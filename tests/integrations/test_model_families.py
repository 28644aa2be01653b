"""Models other than BERT, and wrapped models, are watched without errors and with readable names."""

import math

import pytest
import torch
import transformers
from watched_training import CLASSES, arguments, examples, labels, tiny_bert

from bertmon.integrations.own_loop import Watch
from bertmon.integrations.transformers_trainer import WatchCallback

pytest.importorskip("accelerate")
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": CLASSES,
}


def vision():
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, **SMALL)
    return transformers.ViTForImageClassification(config), {"pixel_values": torch.randn(8, 1, 8, 8)}


def speech():
    config = transformers.Wav2Vec2Config(
        conv_dim=(8, 8),
        conv_kernel=(10, 4),
        conv_stride=(5, 2),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=8,
        apply_spec_augment=False,
        **SMALL,
    )
    return transformers.Wav2Vec2ForSequenceClassification(config), {"input_values": torch.randn(8, 400)}


def texts(kind, config, **options):
    def build():
        ids = torch.randint(5, 60, (8, 12))
        model = kind(config(vocab_size=60, **SMALL | options))
        return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    return build


FAMILIES = {
    "vit": vision,
    "wav2vec2": speech,
    "roberta": texts(transformers.RobertaForSequenceClassification, transformers.RobertaConfig),
    "electra": texts(transformers.ElectraForSequenceClassification, transformers.ElectraConfig, embedding_size=16),
    "deberta-v2": texts(transformers.DebertaV2ForSequenceClassification, transformers.DebertaV2Config),
    "distilbert": texts(
        transformers.DistilBertForSequenceClassification, transformers.DistilBertConfig, dim=16, n_heads=2, n_layers=2
    ),
    "gpt2": texts(
        transformers.GPT2ForSequenceClassification,
        transformers.GPT2Config,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=16,
        pad_token_id=0,
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_family_is_watched_with_all_signals(name, tmp_path):
    torch.manual_seed(0)
    model, inputs = FAMILIES[name]()
    targets = torch.arange(8) % CLASSES
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    with Watch(model, optimizer, tmp_path, total_steps=4, labels=targets, every=2, figures=False) as watch:
        for _ in range(4):
            loss = model(**inputs, labels=targets).loss
            loss.backward()
            with watch.step(loss, inputs | {"labels": targets}):
                optimizer.step()
            optimizer.zero_grad()
    snapshot = watch.history.snapshots[0]
    assert snapshot.logit_std > 0
    assert not math.isnan(watch.history.grad_norms[0])
    assert {0, 1} <= {*snapshot.layers.depths}
    assert len(snapshot.layers) > 8


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # peft's
def test_lora_adapters_have_readable_names(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    model = peft.get_peft_model(tiny_bert(), config)
    callback = WatchCallback(tmp_path / "watched", labels=labels(examples()), every=5, figures=False, on_error="raise")
    transformers.Trainer(model=model, args=arguments(tmp_path), train_dataset=examples(), callbacks=[callback]).train()
    snapshot = callback.watch.history.snapshots[-1]
    names = snapshot.layers.labels
    assert names[:2] == ("enc.l.0.attention.query.lora_A", "enc.l.0.attention.query.lora_B")
    assert names[-1] == "classifier"
    assert snapshot.logit_std > 0
    assert not any(map(math.isnan, snapshot["update_ratio"]))


@pytest.mark.parametrize("wrapper", ["compile", "data parallel", "gradient checkpointing"])
def test_wrapped_model_has_the_weight_names_of_the_plain_one(tmp_path, wrapper):
    plain = tiny_bert()
    if wrapper == "gradient checkpointing":
        new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"  # transformers renamed it in v5
        getattr(plain, new if hasattr(plain, new) else old)()
        model = plain
    else:
        model = torch.compile(plain, backend="eager") if wrapper == "compile" else torch.nn.DataParallel(plain)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3)
    batch = torch.utils.data.default_collate(examples()[:8])
    with Watch(model, optimizer, tmp_path, total_steps=2, labels=[0, 1, 2], every=1, figures=False) as watch:
        for _ in range(2):
            loss = model(**batch).loss
            loss.backward()
            with watch.step(loss, batch):
                optimizer.step()
            optimizer.zero_grad()
    assert watch.history.snapshots[0].layers.labels[0] == "embeddings.word_embeddings"
    assert watch.history.snapshots[0].logit_std > 0
