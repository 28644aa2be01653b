"""A description of a corpus for the first lines of a run's log, and warnings about it. Pure: logs nothing.

Shapes: N texts of a split, K tokens of all texts, C classes.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bertmon.data.corpus import Corpus, Split
from bertmon.data.table_rows import join_names
from bertmon.data.tokenize import TextTokenizer, TokenizedTexts, tokenize_sample
from bertmon.notation import format_percent

_MAX_CLASSES = 10  # listed individually
_WARN_UNKNOWN_TEXTS = 0.01
_WARN_UNKNOWN_TOKENS = 0.1
_WARN_TRUNCATED = 0.9
_WARN_OVERLAP = 0.01


class DataDescription(NamedTuple):
    """Lines and warnings about a corpus, and the numbers behind them."""

    lines: list[str]
    warnings: list[str]
    truncated_share: float  # share of the training texts that reach max_length
    unknown_share: float  # share of the training texts that are [UNK] only
    unknown_token_share: float  # share of [UNK] among the training tokens, without [CLS] and other special tokens
    overlap: int  # test texts that also occur in training

    @property
    def suspected_cause(self) -> str | None:
        """A property of the data that would explain a run that does not learn; None if nothing stands out."""
        if self.unknown_share <= _WARN_UNKNOWN_TEXTS and self.unknown_token_share <= _WARN_UNKNOWN_TOKENS:
            return None
        return (
            f"a tokenizer that does not cover these texts: {format_percent(self.unknown_share)} are [UNK] only, "
            f"{format_percent(self.unknown_token_share)} of all tokens are [UNK]"
        )


def describe_corpus(
    corpus: Corpus,
    tokenizer: TextTokenizer,
    max_length: int,
    train_tokens: TokenizedTexts | None = None,
    *,
    own_texts: bool = True,
) -> DataDescription:
    """A description of classes, truncated and unknown texts, and overlap between training and test texts.

    train_tokens: those of corpus.train; None: up to 1,000 of its texts are tokenized here.
    own_texts: false for demonstration data, whose max_length is deliberately short.
    """
    tokens = train_tokens or tokenize_sample(tokenizer, corpus.train.texts, max_length)
    unknown_share, unknown_token_share = _unknown_shares(tokens, tokenizer)
    truncated_share = float((tokens.lengths >= max_length).mean())
    overlap = _overlap(corpus.train, corpus.test)
    description = DataDescription([], [*corpus.notes], truncated_share, unknown_share, unknown_token_share, overlap)
    description.lines.append(_classes(corpus))
    description.lines.append(
        f"{format_percent(truncated_share)} of the training texts reach data.max_length={max_length} tokens "
        f"(longer ones are truncated), {format_percent(unknown_share)} are [UNK] only, "
        f"{overlap} of {len(corpus.test)} test texts also occur in training"
    )
    description.warnings.extend(_warnings(corpus, description, max_length if own_texts else None))
    return description


def _classes(corpus: Corpus) -> str:
    parts = {"train": corpus.train, "validation": corpus.validation, "test": corpus.test}
    counts = {name: part.class_counts(len(corpus.label_names)) for name, part in parts.items() if part is not None}
    title = f"{len(corpus.label_names)} classes ({' / '.join(counts)} texts)"
    if len(corpus.label_names) <= _MAX_CLASSES:
        texts = (" / ".join(map(str, column)) for column in np.stack([*counts.values()], axis=1))
        return f"{title}: " + ", ".join(f"{name} {text}" for name, text in zip(corpus.label_names, texts, strict=True))
    extremes = (counts["train"].argmin(), counts["train"].argmax())
    fewest, most = (
        f"{corpus.label_names[label]} {' / '.join(str(part[label]) for part in counts.values())}" for label in extremes
    )
    return f"{title}: from {fewest} to {most}"


def _unknown_shares(tokens: TokenizedTexts, tokenizer: TextTokenizer) -> tuple[float, float]:
    """Share of nonempty texts with unknown tokens only, and share of unknown tokens."""
    if tokenizer.unk_id is None:
        return 0.0, 0.0
    is_content = ~np.isin(tokens.ids, tokenizer.special_ids)
    is_unknown = tokens.ids == tokenizer.unk_id
    content = np.add.reduceat(is_content, tokens.offsets[:-1], dtype=np.int64)
    unknown = np.add.reduceat(is_unknown, tokens.offsets[:-1], dtype=np.int64)
    share = float(((content > 0) & (content == unknown)).mean())
    return share, float(unknown.sum() / max(content.sum(), 1))


def _overlap(train: Split, test: Split) -> int:
    return int(np.isin(test.text_hashes(), train.text_hashes()).sum())


def _warnings(corpus: Corpus, description: DataDescription, max_length: int | None) -> list[str]:
    warnings = []
    if description.suspected_cause:
        warnings.append(
            f"the tokenizer does not cover these texts: {format_percent(description.unknown_share)} of them are [UNK] "
            f"only, and {format_percent(description.unknown_token_share)} of all tokens are [UNK]. It replaces "
            "characters that it has never seen and words of more than 100 characters, as in texts without spaces. "
            "Choose a model for this language, separate words by spaces, or train a vocabulary on the texts: "
            "model=bert_small"
        )
    if description.truncated_share > _WARN_TRUNCATED and max_length is not None:
        warnings.append(
            f"{format_percent(description.truncated_share)} of the training texts reach data.max_length={max_length} "
            "tokens; a larger data.max_length truncates less"
        )
    warnings += _part_warnings("test", corpus.test, description.overlap, corpus.label_names)
    if corpus.validation is not None:
        overlap = _overlap(corpus.train, corpus.validation)
        warnings += _part_warnings("validation", corpus.validation, overlap, corpus.label_names)
    if twins := _case_twins(corpus.label_names):
        warnings.append(f"labels that differ only in case are separate classes: {'; '.join(twins)}")
    return warnings


def _part_warnings(name: str, part: Split, overlap: int, label_names: Sequence[str]) -> list[str]:
    """Warnings about the test or validation part. overlap: its texts that also occur in training."""
    warnings = []
    if overlap > _WARN_OVERLAP * len(part):
        warnings.append(
            f"{overlap} of {len(part)} {name} texts also occur in training, which inflates the {name} accuracy. Remove "
            "the duplicates"
        )
    counts = part.class_counts(len(label_names))
    missing = [label for label, count in zip(label_names, counts, strict=True) if not count]
    if len(missing) == len(label_names) - 1:
        warnings.append(f"all {name} texts have the same label, so that their accuracy does not show learning")
    elif missing:
        warnings.append(f"no {name} text has the label {join_names(missing)}")
    return warnings


def _case_twins(label_names: Sequence[str]) -> list[str]:
    groups = defaultdict(list)
    for name in label_names:
        groups[name.casefold()].append(name)
    return [join_names(names) for names in groups.values() if len(names) > 1]
