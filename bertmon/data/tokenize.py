"""Texts to token ids, with the model's own tokenizer or a WordPiece vocabulary trained on the texts.

Knows the tokenizers library. Padding, batches and their order are in data.batches.
Shapes: N texts, K tokens of all texts together.
"""

import io
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from bertmon.config import ModelConfig
from bertmon.data.corpus import TextSequence
from bertmon.errors import InputError, require
from bertmon.hub import local_files_only
from bertmon.storage import cached_bytes, content_hash

_VOCAB_SIZE = 8000
_MAX_VOCAB_TEXTS = 20_000  # a vocabulary is trained on: 8,000 pieces are settled by then, and it takes two seconds
_ENCODE_BATCH = 1000  # texts passed to the tokenizer together: its objects take far more memory than the ids


@dataclass(frozen=True, slots=True)
class TextTokenizer:
    """A tokenizer and the id that its model pads with."""

    tokenizer: Tokenizer
    pad_id: int

    @property
    def size(self) -> int:
        """Embeddings that a model needs: one more than the largest id, for a vocabulary may have gaps."""
        return 1 + max(self.tokenizer.get_vocab().values())


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """Token ids of N texts, concatenated: text i is ids[offsets[i] : offsets[i + 1]]."""

    ids: npt.NDArray[np.int32]  # [K]
    offsets: npt.NDArray[np.int64]  # [N + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.diff(self.offsets)


LazyTokens = Callable[[npt.NDArray[np.int64]], TokenizedTexts]
"""Tokenizes the texts at these indices, on demand."""


def load_tokenizer(config: ModelConfig, texts: TextSequence, cache: Path) -> TextTokenizer:
    """The tokenizer of `model.tokenizer`, else of `model.name`, else one trained on `texts`. Raises InputError.

    It is trained on at most 20,000 texts, evenly spaced.
    """
    if config.tokenizer is not None:
        return _load_named("model.tokenizer", config.tokenizer)
    if config.name is not None:
        return _load_named("model.name", config.name)
    vocab_size = config.vocab_size or _VOCAB_SIZE
    count = min(len(texts), _MAX_VOCAB_TEXTS)
    sample = [texts[number * len(texts) // count] for number in range(count)]
    key = content_hash("2", str(vocab_size), *sample)  # increase the number when the training below changes
    trained = cached_bytes(cache, f"wordpiece-{key[:32]}.json", lambda: _train_wordpiece(sample, vocab_size))
    return TextTokenizer(Tokenizer.from_str(trained.decode()), pad_id=0)


def tokenize(tokenizer: TextTokenizer, texts: TextSequence, max_length: int, cache: Path) -> TokenizedTexts:
    """Token ids of every text, special tokens included, cut to `max_length`; from the cache if it has them."""
    encoder = _truncating(tokenizer, max_length)

    def encode() -> bytes:
        tokens = _encode(encoder, texts)
        file = io.BytesIO()
        np.savez(file, ids=tokens.ids, offsets=tokens.offsets)
        return file.getvalue()

    key = content_hash("1", encoder.to_str(), *texts)  # increase the number when the encoding above changes
    with np.load(io.BytesIO(cached_bytes(cache, f"tokens-{key[:32]}.npz", encode)), allow_pickle=False) as stored:
        return TokenizedTexts(stored["ids"], stored["offsets"])


def tokenize_lazily(
    tokenizer: TextTokenizer, take: Callable[[npt.NDArray[np.int64]], Iterable[str]], max_length: int
) -> LazyTokens:
    """As `tokenize`, for some texts at a time: `take` reads those at given indices. Nothing is cached."""
    encoder = _truncating(tokenizer, max_length)
    return lambda indices: _encode(encoder, take(indices))


def _truncating(tokenizer: TextTokenizer, max_length: int) -> Tokenizer:
    encoder = Tokenizer.from_str(tokenizer.tokenizer.to_str())  # a copy: truncation is a setting of the object
    encoder.no_padding()
    encoder.enable_truncation(max_length)
    return encoder


def _encode(encoder: Tokenizer, texts: Iterable[str]) -> TokenizedTexts:
    ids, lengths, remaining = [], [0], iter(texts)
    while portion := list(itertools.islice(remaining, _ENCODE_BATCH)):
        encodings = [np.array(encoding.ids, dtype=np.int32) for encoding in encoder.encode_batch_fast(portion)]
        ids.append(np.concatenate(encodings))
        lengths += map(len, encodings)
    return TokenizedTexts(np.concatenate(ids), np.cumsum(lengths, dtype=np.int64))


def _load_named(key: str, name: str) -> TextTokenizer:
    from transformers import AutoTokenizer

    local = local_files_only(key, name)
    try:
        loaded = AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=local)
    except Exception as error:  # whatever the library makes of a third-party file
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        instead = ", or model.tokenizer=null to train one on the training texts" if key == "model.tokenizer" else ""
        raise InputError(
            f"{key}={name}: could not load a tokenizer ({reason}).\n"
            f"Set the name of a model on the hub (the first use needs a network), "
            f"or a local folder with tokenizer.json or vocab.txt{instead}."
        ) from None
    ok = getattr(loaded, "backend_tokenizer", None) is not None and loaded.pad_token_id is not None
    require(ok, key, name, "a model with a fast tokenizer that has a padding token")
    return TextTokenizer(loaded.backend_tokenizer, loaded.pad_token_id)


def _train_wordpiece(texts: Sequence[str], vocab_size: int) -> bytes:
    """WordPiece over BERT's lower-cased words, as JSON of the tokenizers library; [PAD] is entry 0.

    The library numbers the pieces "##x" in the order of a hash table that differs between processes, and breaks ties
    between equally frequent pairs by these numbers. Here they get fixed numbers first, so that the same texts yield the
    same vocabulary everywhere.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()

    def continues_a_word(character: str) -> bool:
        return len(splitter.pre_tokenize_str(normalizer.normalize_str(f"a{character}"))) == 1

    characters = set[str]().union(*(set(normalizer.normalize_str(text)) for text in texts))
    pieces = [f"##{character}" for character in sorted(characters) if continues_a_word(character)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    scratch = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    scratch.normalizer, scratch.pre_tokenizer = normalizer, splitter
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocab_size, len(special) + 2 * len(pieces)),  # keep the whole alphabet
        special_tokens=[*special, *pieces],
        show_progress=False,
    )
    scratch.train_from_iterator(texts, trainer)

    # A second tokenizer: in `scratch` the pieces are special tokens, which would match inside the text itself.
    tokenizer = Tokenizer(models.WordPiece(scratch.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    )
    return str(tokenizer.to_str()).encode()
