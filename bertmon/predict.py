"""`bertmon predict MODEL FILE`: label and probability of every text in a file, and metrics if the file has labels.

Shapes: B texts of a batch, C classes.
"""

import argparse
import csv
import itertools
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from bertmon.config import Device, require_table_format
from bertmon.data import table_rows
from bertmon.data.examples import is_empty, label_name, text_value
from bertmon.data.table_rows import BadRowError, MissingColumnsError, Row, TableFormat
from bertmon.data.tokenize import has_vocabulary
from bertmon.errors import InputError, exit_after_closed_pipe, first_line, require, storage_errors
from bertmon.metrics import EvalResult, precision_recall
from bertmon.model import max_positions, quiet_transformers
from bertmon.notation import format_percent
from bertmon.result import MODEL_DIR, RunResult
from bertmon.storage import atomic_path
from bertmon.training.step import resolve_device

_CHUNK_BATCHES = 64  # batches whose texts are sorted by length together, to reduce padding


class Example(NamedTuple):
    """A row of the file."""

    texts: tuple[str, ...]  # one, or the two of a pair
    label: str | None  # None: the row has no such field; empty: unknown


class Prediction(NamedTuple):
    """The model's prediction for a text."""

    label: str
    probability: float  # of that label, in (0, 1]


@dataclass(frozen=True, slots=True)
class Classifier:
    """A saved model with its tokenizer, ready to predict."""

    model: Any
    tokenizer: Any
    max_length: int

    @property
    def label_names(self) -> list[str]:
        names = self.model.config.id2label
        return [str(names[label]) for label in range(len(names))]

    def predict(self, examples: Sequence[Example], batch_size: int) -> Iterator[Prediction]:
        """The predictions, in the order of the examples."""
        texts = [example.texts for example in examples]
        encoded = self.tokenizer(
            *map(list, zip(*texts, strict=True)), truncation=True, max_length=self.max_length, return_length=True
        )
        lengths = np.array(encoded.pop("length"))
        order = np.argsort(lengths, kind="stable")
        probabilities = np.empty((len(texts), len(self.label_names)))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = {name: [values[row] for row in rows] for name, values in encoded.items()}
            probabilities[rows] = self._probabilities(self.tokenizer.pad(batch, return_tensors="pt")).cpu().numpy()
        names = self.label_names
        for row in probabilities:
            yield Prediction(names[row.argmax()], float(row.max()))

    @torch.inference_mode()
    def _probabilities(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Probabilities of the classes [B, C]."""
        inputs = {name: values.to(self.model.device) for name, values in batch.items()}
        logits: Tensor = self.model(**inputs).logits
        return logits.float().softmax(dim=1)


def load_classifier(model: Path, device: torch.device) -> Classifier:
    """The classifier in the folder of a run or of a saved model. Raises InputError."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = model / MODEL_DIR if (model / MODEL_DIR).is_dir() else model
    if not (folder / "config.json").is_file():
        hint = "; train with train.save_model=best to keep the model" if (model / "result.json").exists() else ""
        raise InputError(f"MODEL: expected the folder of a saved model, or of a run that saved one, got {model}{hint}.")
    try:
        with quiet_transformers():
            classifier = AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers can raise anything for a corrupt file
        raise InputError(f"MODEL: could not load {folder} ({type(error).__name__}: {first_line(error)}).") from None
    require(has_vocabulary(tokenizer), "MODEL", folder, "a folder with tokenizer files, such as tokenizer.json")
    limit = min(tokenizer.model_max_length, max_positions(classifier))
    return Classifier(classifier.to(device).eval(), tokenizer, limit)


def read_examples(
    path: Path,
    text_columns: Sequence[str],
    label_column: str | None,
    table_format: TableFormat,
    labels: Sequence[str],
    *,
    require_label: bool = False,
) -> Iterator[Example]:
    """The rows of a file in any format that training reads. Raises InputError with the file and the line.

    label_column: optional in the file unless require_label; None: ignore labels. labels: the label names to expect.
    """
    require(path.is_file(), "FILE", path, "an existing file")
    require(table_rows.is_readable(path), "FILE", path, f"a file of {', '.join(table_rows.SUFFIXES)}")
    where, unit = f"FILE: {path}", table_rows.row_unit(path)
    options = dict(zip(text_columns, ("--text-column", "--text-pair-column"), strict=False))
    required = [*text_columns]
    if label_column and require_label:
        options[label_column] = "--label-column"
        required.append(label_column)

    def hint(missing: MissingColumnsError) -> str:
        return f" Name the column with {' and '.join(options[name] for name in missing.missing)}."

    with table_rows.located_errors(where, unit, hint, reword=_with_options):
        for row in table_rows.read_rows(path, required, table_format, optional=[label_column or ""]):
            texts = tuple(_text(row, name) for name in text_columns)
            label = _label(row, label_column, labels) if label_column and label_column in row.values else None
            yield Example(texts, label)


def _text(row: Row, column: str) -> str:
    value = row.values[column]
    return "" if not isinstance(value, str) and is_empty(value) else text_value(row.number, column, value)


def _label(row: Row, column: str, labels: Sequence[str]) -> str:
    value = row.values[column]
    if is_empty(value):
        return ""
    label = label_name(row.number, column, value)
    if label not in labels:
        expected = f"{', '.join(labels[:10])} or an empty field; --ignore-labels predicts without comparing"
        raise BadRowError(row.number, f"has {label!r} as {column!r}: expected {expected}")
    return label


def _with_options(reason: str) -> str:
    """The message with this command's options instead of config keys."""
    return re.sub(r"\bdata\.(?=delimiter|encoding|quoted)", "--", reason)


def write_predictions(
    classifier: Classifier, examples: Iterator[Example], batch_size: int, text_columns: Sequence[str], out: IO[str]
) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """Write a CSV row per text; returns the confusion matrix [C, C] of the labeled texts, None without any.

    The output has a label column if the first example has a label field.
    """
    names = classifier.label_names
    index = {name: label for label, name in enumerate(names)}
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    first = next(examples, None)
    labeled = first is not None and first.label is not None
    examples = itertools.chain([first] if first else [], examples)
    writer = csv.writer(out)
    writer.writerow([*text_columns, "prediction", "probability", *(["label"] if labeled else [])])
    with tqdm(unit="text", desc="predicting", disable=None) as bar:
        while chunk := list(itertools.islice(examples, batch_size * _CHUNK_BATCHES)):
            for example, prediction in zip(chunk, classifier.predict(chunk, batch_size), strict=True):
                label = [example.label or ""] if labeled else []
                writer.writerow([*example.texts, prediction.label, f"{prediction.probability:.4f}", *label])
                if example.label:
                    confusion[index[example.label], index[prediction.label]] += 1
                bar.update()
    return confusion if confusion.any() else None


def format_metrics(confusion: np.ndarray[Any, np.dtype[np.int64]], names: Sequence[str]) -> str:
    """Accuracy, macro-F1 and MCC; precision and recall of each class; the confusion matrix, a row per label."""
    result = EvalResult.from_confusion(0, 0.0, confusion)
    head = f"accuracy {format_percent(result.accuracy)}, macro-F1 {result.f1_macro:.3f}, MCC {result.mcc:.3f}"
    width = max(map(len, [*names, "label"]))
    lines = [head, f"{'label':{width}}  precision  recall   texts  predicted as {', '.join(names)}"]
    precision, recall = precision_recall(confusion)
    for label, name in enumerate(names):
        row = " ".join(f"{count:>6}" for count in confusion[label])
        lines.append(
            f"{name:{width}}  {precision[label]:>9.1%} {recall[label]:>7.1%} {confusion[label].sum():>7}  {row}"
        )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bertmon predict", description="Predict the label of every text in a file with a model that a run saved."
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="multirun/<sweep>/best, a run, or a model")
    parser.add_argument("file", metavar="FILE", type=Path, help=f"texts: {', '.join(table_rows.SUFFIXES)}")
    parser.add_argument("--out", type=Path, help="CSV file to write (default: standard output)")
    parser.add_argument("--text-column", help="column of the text (default: the run's, or text)")
    parser.add_argument("--text-pair-column", help="column of the second text of a pair (default: the run's)")
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--label-column", help="column of the label, if any (default: the run's, or label)")
    labels.add_argument("--ignore-labels", action="store_true", help="read texts only, and print no metrics")
    parser.add_argument("--delimiter", help="column separator of .csv and .tsv (default: the run's, or by the header)")
    parser.add_argument("--encoding", help="encoding of the file (default: from its byte order mark, or UTF-8)")
    parser.add_argument(
        "--quoted",
        choices=["true", "false"],
        help="whether fields may be quoted (default: the run's, or true for .csv only)",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="texts per batch (default: 32)")
    parser.add_argument("--device", choices=[each.value for each in Device], default="auto")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(arguments)
    try:
        _predict(args)
    except InputError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        exit_after_closed_pipe()


def _table_format(args: argparse.Namespace, data: Mapping[str, Any]) -> TableFormat:
    """The options; without them, delimiter and quotes of the training file for a file with the same suffix.

    data: the part of the run's config. An encoding is not inherited: that of one file is often wrong for another.
    """
    trained = data if table_rows.suffix_of(Path(data.get("train") or "")) == table_rows.suffix_of(args.file) else {}
    quoted = trained.get("quoted") if args.quoted is None else args.quoted == "true"
    return TableFormat(args.delimiter or trained.get("delimiter"), args.encoding, quoted)


def _predict(args: argparse.Namespace) -> None:
    require(args.batch_size >= 1, "--batch-size", args.batch_size, "an integer of at least 1")
    result = RunResult.read(args.model) or RunResult.read(args.model.resolve().parent)
    data = ((result.config or {}) if result else {}).get("data") or {}
    first = args.text_column or data.get("text_column") or "text"
    second = args.text_pair_column or data.get("text_pair_column")
    text_columns = (first, second) if second else (first,)
    label_column = None if args.ignore_labels else args.label_column or data.get("label_column") or "label"
    expected = "a column other than those of the text (--ignore-labels reads none)"
    require(label_column not in text_columns, "--label-column", label_column, expected)
    table_format = _table_format(args, data)
    require_table_format(table_format.delimiter, table_format.encoding, prefix="--")
    classifier = load_classifier(args.model, resolve_device(Device(args.device)))
    examples = read_examples(
        args.file,
        text_columns,
        label_column,
        table_format,
        classifier.label_names,
        require_label=args.label_column is not None,
    )
    with ExitStack() as stack:
        out: IO[str] = sys.stdout
        if args.out:
            stack.enter_context(storage_errors(args.out))
            path = stack.enter_context(atomic_path(args.out))
            out = stack.enter_context(path.open("w", encoding="utf-8", newline=""))
        confusion = write_predictions(classifier, examples, args.batch_size, text_columns, out)
    if confusion is not None:
        print(format_metrics(confusion, classifier.label_names), file=sys.stdout if args.out else sys.stderr)
    if args.out:
        print(f"Predictions: {args.out}")
