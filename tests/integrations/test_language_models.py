"""Models with a head for each token: the recorded loss is the training loss, and there is no verdict on collapse."""

import math

import pytest
import torch
import transformers
from watched_training import arguments, examples, labels, tiny_bert

from bertmon.integrations.labels import chance_loss
from bertmon.integrations.next_token import shifts_labels
from bertmon.integrations.own_loop import Watch
from bertmon.integrations.transformers_trainer import WatchCallback

pytest.importorskip("accelerate")
SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}


def gpt2():
    config = transformers.GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=0)
    config.eos_token_id = 0
    return transformers.GPT2LMHeadModel(config)


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))


def t5():
    small = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    config = transformers.T5Config(vocab_size=60, decoder_start_token_id=0, pad_token_id=0, **small)
    return transformers.T5ForConditionalGeneration(config)


def masked_lm():
    return transformers.BertForMaskedLM(tiny_bert().config)


def lora():
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(llama(), peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))


KINDS = {"gpt2": gpt2, "llama": llama, "t5": t5, "masked": masked_lm, "lora": lora}


def token_rows():
    """Texts in which every second token is its own label."""
    rows = [row | {"labels": row["input_ids"].clone()} for row in examples()]
    for row in rows:
        row["labels"][::2] = -100
    return rows


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # peft's
@pytest.mark.parametrize("name", KINDS)
def test_callback_records_the_training_loss_of_a_language_model(name, tmp_path, caplog):
    torch.manual_seed(0)
    model = KINDS[name]()
    rows = token_rows()
    callback = WatchCallback(tmp_path / "watched", labels=labels(rows), every=5, figures=False, on_error="raise")
    trainer = transformers.Trainer(
        model=model, args=arguments(tmp_path, logging_steps=1), train_dataset=rows, callbacks=[callback]
    )
    trainer.train()
    history = callback.watch.history
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert history.losses == pytest.approx(logged, rel=1e-3)
    assert history.plan.chance_loss == pytest.approx(math.log(55), abs=0.1)
    assert history.plan.loss_known
    assert all(math.isnan(shot.logit_std) for shot in history.snapshots)
    assert len([message for message in caplog.messages if "no verdict on collapse for this model" in message]) == 1


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_own_loop_gives_no_verdict_on_collapse_for_a_language_model(name, tmp_path, caplog):
    torch.manual_seed(0)
    model, rows = KINDS[name](), token_rows()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = torch.utils.data.default_collate(rows[:8])
    model.train()
    with Watch(model, optimizer, tmp_path, total_steps=4, labels=labels(rows), every=2, figures=False) as watch:
        for _ in range(4):
            loss = model(**batch).loss
            loss.backward()
            with watch.step(loss, batch):
                optimizer.step()
            optimizer.zero_grad()
    assert watch.history.losses[-1] == loss.item()
    assert [message for message in caplog.messages if "no verdict on collapse" in message] == [
        "logits of shape [8, 12, 60] are not one row for each text: no verdict on collapse for this model, "
        "gradients and updates only."
    ]


def test_labels_shifted_by_the_collator_are_not_shifted_again(tmp_path):
    """As by a collator without padding: if the model shifted them again, it would drop the first label."""
    torch.manual_seed(0)
    rows = [
        {"input_ids": row["input_ids"], "labels": row["input_ids"], "shift_labels": row["input_ids"].roll(-1)}
        for row in examples()
    ]
    callback = WatchCallback(tmp_path / "watched", labels=labels(rows), every=5, figures=False, on_error="raise")
    trainer = transformers.Trainer(
        model=llama(),
        args=arguments(tmp_path, logging_steps=1, remove_unused_columns=False),
        train_dataset=rows,
        callbacks=[callback],
    )
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert callback.watch.history.losses == pytest.approx(logged, rel=1e-3)


def test_classifiers_on_a_decoder_keep_their_labels():
    config = gpt2().config
    assert not shifts_labels(transformers.GPT2ForTokenClassification(config))
    assert not shifts_labels(transformers.GPT2ForSequenceClassification(config))
    assert not shifts_labels(torch.nn.Linear(2, 2))


def test_chance_loss_of_token_labels_ignores_unlabeled_tokens():
    assert chance_loss([[-100, 0, 1], [-100, 1, 0]]) == pytest.approx(math.log(2))
