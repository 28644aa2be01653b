"""Conversion of texts to token ids, with the model's tokenizer or a WordPiece vocabulary trained on the texts.

Uses the tokenizers library. Padding, batches and their order are in data.batches.
Shapes: N texts, K tokens of all texts together.
"""

import copy
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from bertmon.config import ModelConfig
from bertmon.data.corpus import TextSequence, flatten
from bertmon.data.lazy_texts import LazyTexts, Text, text_parts
from bertmon.errors import InputError, first_line, require
from bertmon.hub import local_files_only
from bertmon.storage import ContentHash, cached_bytes, content_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_VOCAB_SIZE = 8000
_SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_MAX_WORD_LENGTH = 100  # characters that WordPiece takes as one word; longer ones would be [UNK]
_MAX_VOCAB_TEXTS = 20_000  # to train a vocabulary on: enough for 8,000 stable pieces, in two seconds
_SAMPLE_TEXTS = 1000  # that represent all texts in a description
_ENCODE_BATCH = 1000  # texts passed to the tokenizer together: its objects take far more memory than the ids


@dataclass(frozen=True, slots=True)
class TextTokenizer:
    """A tokenizer with the properties that its model needs."""

    tokenizer: Tokenizer
    pad_id: int
    unk_id: int | None = None
    pretrained: Optional["PreTrainedTokenizerBase"] = None
    """The tokenizer loaded by transformers; None for a vocabulary trained on the texts."""

    @property
    def size(self) -> int:
        """Number of embeddings that a model needs: the largest id plus one, since a vocabulary can have gaps."""
        return 1 + max(self.tokenizer.get_vocab().values())

    @property
    def special_ids(self) -> list[int]:
        """Ids of [CLS], [SEP] and other special tokens, except the one for unknown words."""
        added = self.tokenizer.get_added_tokens_decoder()
        return [number for number, token in added.items() if token.special and number != self.unk_id]

    def to_transformers(self, max_length: int) -> "PreTrainedTokenizerBase":
        """The tokenizer as a transformers object, for texts of at most `max_length` tokens."""
        from transformers import PreTrainedTokenizerFast

        if self.pretrained is not None:
            tokenizer = copy.deepcopy(self.pretrained)
            tokenizer.model_max_length = max_length
            tokenizer.padding_side = "right"  # as in training
            return tokenizer
        names = {f"{name.strip('[]').lower()}_token": name for name in _SPECIAL_TOKENS}
        return PreTrainedTokenizerFast(tokenizer_object=self.tokenizer, model_max_length=max_length, **names)


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """Token ids of N texts, concatenated: text i is ids[offsets[i] : offsets[i + 1]]."""

    ids: npt.NDArray[np.int32]  # [K]
    offsets: npt.NDArray[np.int64]  # [N + 1]
    type_ids: npt.NDArray[np.int8] | None = None  # [K] 0 in the first and 1 in the second text of a pair; None: singles

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.diff(self.offsets)


LazyTokens = Callable[[npt.NDArray[np.int64]], TokenizedTexts]
"""Tokenizes the texts at these indices, on demand."""


def load_tokenizer(config: ModelConfig, texts: TextSequence, cache: Path) -> TextTokenizer:
    """The tokenizer of `model.tokenizer`, else of `model.name`, else one trained on `texts`. Raises InputError.

    A tokenizer is trained on at most 20,000 texts, evenly spaced.
    """
    if config.tokenizer is not None:
        return _load_named("model.tokenizer", config.tokenizer)
    if config.name is not None:
        return _load_named("model.name", config.name)
    vocab_size = config.vocab_size or _VOCAB_SIZE
    sample = list(flatten(_evenly_spaced(texts, _MAX_VOCAB_TEXTS)))
    key = content_hash("3", str(vocab_size), *sample)  # increase the number when the training below changes
    trained = cached_bytes(cache, f"wordpiece-{key[:32]}.json", lambda: _train_wordpiece(sample, vocab_size))
    return TextTokenizer(Tokenizer.from_str(trained.decode()), pad_id=0, unk_id=1)


def tokenize(tokenizer: TextTokenizer, texts: TextSequence, max_length: int, cache: Path) -> TokenizedTexts:
    """Token ids of every text, including special tokens, truncated to `max_length`; from the cache if possible."""
    encoder = _truncating_encoder(tokenizer, max_length)

    def encode() -> bytes:
        tokens = _encode(encoder, texts)
        file = io.BytesIO()
        if tokens.type_ids is None:
            np.savez(file, ids=tokens.ids, offsets=tokens.offsets)
        else:
            np.savez(file, ids=tokens.ids, offsets=tokens.offsets, type_ids=tokens.type_ids)
        return file.getvalue()

    kind = "1" if len(text_parts(texts[0])) == 1 else "pairs-1"  # increase the numbers when the encoding above changes
    key = _texts_hash(kind, encoder.to_str(), texts)
    with np.load(io.BytesIO(cached_bytes(cache, f"tokens-{key[:32]}.npz", encode)), allow_pickle=False) as stored:
        return TokenizedTexts(stored["ids"], stored["offsets"], stored.get("type_ids"))


def _texts_hash(kind: str, encoder: str, texts: TextSequence) -> str:
    """Hash of everything that determines the token ids; texts of a large file are not loaded."""
    if isinstance(texts, LazyTexts):
        return content_hash(kind, encoder, "digest", texts.digest)
    digest = ContentHash()
    for part in itertools.chain((kind, encoder), flatten(texts)):
        digest.add(part)
    return digest.hex()


def tokenize_lazily(
    tokenizer: TextTokenizer, take: Callable[[npt.NDArray[np.int64]], Iterable[Text]], max_length: int
) -> LazyTokens:
    """Like `tokenize`, but for some texts at a time: `take` reads those at given indices. Nothing is cached."""
    encoder = _truncating_encoder(tokenizer, max_length)
    return lambda indices: _encode(encoder, take(indices))


def tokenize_sample(tokenizer: TextTokenizer, texts: TextSequence, max_length: int) -> TokenizedTexts:
    """Like `tokenize`, but for at most 1,000 texts, evenly spaced. Nothing is cached."""
    return _encode(_truncating_encoder(tokenizer, max_length), _evenly_spaced(texts, _SAMPLE_TEXTS))


def _evenly_spaced(texts: TextSequence, max_count: int) -> Iterator[Text]:
    count = min(len(texts), max_count)
    indices = [number * len(texts) // count for number in range(count)]
    return texts.take(indices) if isinstance(texts, LazyTexts) else (texts[index] for index in indices)


def _truncating_encoder(tokenizer: TextTokenizer, max_length: int) -> Tokenizer:
    encoder = Tokenizer.from_str(tokenizer.tokenizer.to_str())  # a copy: truncation is a setting of the object
    encoder.no_padding()
    side = "right" if tokenizer.pretrained is None else tokenizer.pretrained.truncation_side
    encoder.enable_truncation(max_length, direction=side)
    return encoder


def _encode(encoder: Tokenizer, texts: Iterable[Text]) -> TokenizedTexts:
    ids: list[npt.NDArray[np.int32]] = []
    type_ids: list[npt.NDArray[np.int8]] = []
    lengths, remaining = [0], iter(texts)
    while chunk := list(itertools.islice(remaining, _ENCODE_BATCH)):
        encodings = encoder.encode_batch_fast(chunk)
        arrays = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        ids.append(np.concatenate(arrays))
        lengths += map(len, arrays)
        if not isinstance(chunk[0], str):
            type_ids += (np.array(encoding.type_ids, dtype=np.int8) for encoding in encodings)
    offsets = np.cumsum(lengths, dtype=np.int64)
    return TokenizedTexts(np.concatenate(ids), offsets, np.concatenate(type_ids) if type_ids else None)


def _load_named(key: str, name: str) -> TextTokenizer:
    from transformers import AutoTokenizer

    local = local_files_only(key, name)
    try:
        loaded = AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=local)
    except Exception as error:  # the library can raise anything for a third-party file
        alternative = ", or model.tokenizer=null to train one on the training texts" if key == "model.tokenizer" else ""
        raise InputError(
            f"{key}={name}: could not load a tokenizer ({first_line(error)}).\n"
            f"Set the name of a model on the hub (the first use needs a network), "
            f"or a local folder with tokenizer.json or vocab.txt{alternative}."
        ) from None
    ok = getattr(loaded, "backend_tokenizer", None) is not None and loaded.pad_token_id is not None
    require(ok, key, name, "a model with a fast tokenizer that has a padding token")
    require(has_vocabulary(loaded), key, name, "a model with a vocabulary file, such as tokenizer.json")
    return TextTokenizer(loaded.backend_tokenizer, loaded.pad_token_id, loaded.unk_token_id, loaded)


def has_vocabulary(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether there are tokens beyond the special ones: transformers loads a folder without tokenizer files as well."""
    return len(tokenizer) > len(tokenizer.added_tokens_decoder)


def _train_wordpiece(texts: Sequence[str], vocab_size: int) -> bytes:
    """A WordPiece tokenizer for BERT's lowercased words, as JSON of the tokenizers library; [PAD] has id 0.

    The library numbers the "##x" pieces in the order of a hash table, which differs between processes, and breaks ties
    between equally frequent pairs by these numbers. Here they are numbered in advance, so that the same texts always
    yield the same vocabulary.

    Words of more than 100 characters, such as texts in a language without spaces, are split into words of 100: the
    library would replace each by a single [UNK] or, with a higher limit, take 0.2 s for 2,000 characters.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.FixedLength(length=_MAX_WORD_LENGTH)]
    )

    def continues_a_word(character: str) -> bool:
        return len(splitter.pre_tokenize_str(normalizer.normalize_str(f"a{character}"))) == 1

    characters = set[str]().union(*(set(normalizer.normalize_str(text)) for text in texts))
    pieces = [f"##{character}" for character in sorted(characters) if continues_a_word(character)]
    scratch = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    scratch.normalizer, scratch.pre_tokenizer = normalizer, splitter
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocab_size, len(_SPECIAL_TOKENS) + 2 * len(pieces)),  # keep the whole alphabet
        special_tokens=[*_SPECIAL_TOKENS, *pieces],
        show_progress=False,
    )
    scratch.train_from_iterator(texts, trainer)

    # A second tokenizer: in `scratch` the pieces are special tokens, which would match inside the text itself.
    tokenizer = Tokenizer(models.WordPiece(scratch.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.add_special_tokens(_SPECIAL_TOKENS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return str(tokenizer.to_str()).encode()
