"""A small task for the tests of bertmon.integrations: random token ids, three classes, a tiny BERT."""

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

CLASSES = 3


def examples(count=96, length=12):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(count):
        ids = torch.randint(5, 60, (length,), generator=generator)
        rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": number % CLASSES})
    return rows


def labels(rows):
    return [row["labels"] for row in rows]


def tiny_bert(**config):
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            **{
                "vocab_size": 60,
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "max_position_embeddings": 16,
                "num_labels": CLASSES,
            }
            | config
        )
    )


def arguments(folder, **options):
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        **{
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "report_to": "none",
            "logging_steps": 1000,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        | options,
    )


def trainer(folder, callback, *others, model=None, kind=Trainer, rows=None, options=None, **keywords):
    rows = rows or examples()
    return kind(
        model=model or tiny_bert(),
        args=arguments(folder, **(options or {})),
        train_dataset=rows,
        callbacks=[*([callback] if callback else []), *others],
        **keywords,
    )


def scalar_steps(folder, tag):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return [event.step for event in events.Scalars(tag)]


class RaiseAt(TrainerCallback):
    """Raises once, after a number of steps."""

    def __init__(self, step, error=KeyboardInterrupt):
        self._step, self._error = step, error

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self._step:
            self._step = None
            raise self._error


class StopAt(TrainerCallback):
    """Ends training after a number of steps."""

    def __init__(self, step):
        self._step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self._step
