"""Texts to token ids: the model's own vocabulary, or WordPiece trained on the texts.

Knows tokenizers. Leaves padding, batches and their order to batches.
Shapes: N texts, K tokens of all of them together.
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
from bertmon.errors import InputError
from bertmon.hub import local_files_only
from bertmon.sanitize import sanitize_line
from bertmon.storage import cached_bytes, content_hash

_VOCAB_SIZE = 8000
_MOST_TEXTS = 20_000  # that a vocabulary is trained on: 8,000 pieces are settled by then, and it takes two seconds
_AT_ONCE = 1000  # texts handed to the tokenizer together: its objects take far more memory than the ids


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
    """Token ids of N texts, one behind the other: text i is ids[offsets[i] : offsets[i + 1]]."""

    ids: npt.NDArray[np.int32]  # [K]
    offsets: npt.NDArray[np.int64]  # [N + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.diff(self.offsets)


LazyTokens = Callable[[npt.NDArray[np.int64]], TokenizedTexts]
"""Gives the tokens of the texts at these indices, made when they are asked for."""


def load_tokenizer(config: ModelConfig, texts: TextSequence, cache: Path) -> TextTokenizer:
    """The vocabulary of `model.tokenizer`, else of `model.name`, else one trained on `texts`. Raises InputError.

    Of more than 20,000 texts it is trained on 20,000, at equal distances.
    """
    if config.tokenizer is not None:
        return _load_named("model.tokenizer", config.tokenizer)
    if config.name is not None:
        return _load_named("model.name", config.name)
    vocab_size = config.vocab_size or _VOCAB_SIZE
    count = min(len(texts), _MOST_TEXTS)
    some = [texts[number * len(texts) // count] for number in range(count)]
    key = content_hash("2", str(vocab_size), *some)  # raise the number when the training below changes
    trained = cached_bytes(cache, f"wordpiece-{key[:32]}.json", lambda: _train_wordpiece(some, vocab_size))
    return TextTokenizer(Tokenizer.from_str(trained.decode()), pad_id=0)


def tokenize(vocabulary: TextTokenizer, texts: TextSequence, max_length: int, cache: Path) -> TokenizedTexts:
    """Token ids of every text, special tokens included, cut to `max_length`; from the cache where it has them."""
    tokenizer = _truncating(vocabulary, max_length)

    def encode() -> bytes:
        tokens = _encode(tokenizer, texts)
        file = io.BytesIO()
        np.savez(file, ids=tokens.ids, offsets=tokens.offsets)
        return file.getvalue()

    key = content_hash("1", tokenizer.to_str(), *texts)  # raise the number when the encoding above changes
    with np.load(io.BytesIO(cached_bytes(cache, f"tokens-{key[:32]}.npz", encode)), allow_pickle=False) as stored:
        return TokenizedTexts(stored["ids"], stored["offsets"])


def tokenize_lazily(
    vocabulary: TextTokenizer, take: Callable[[npt.NDArray[np.int64]], Iterable[str]], max_length: int
) -> LazyTokens:
    """As `tokenize`, some texts at a time, which `take` gives for their indices: nothing is kept of them."""
    tokenizer = _truncating(vocabulary, max_length)
    return lambda indices: _encode(tokenizer, take(indices))


def _truncating(vocabulary: TextTokenizer, max_length: int) -> Tokenizer:
    tokenizer = Tokenizer.from_str(vocabulary.tokenizer.to_str())  # a copy: truncation is a setting of the object
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


def _encode(tokenizer: Tokenizer, texts: Iterable[str]) -> TokenizedTexts:
    ids, lengths, remaining = [], [0], iter(texts)
    while portion := list(itertools.islice(remaining, _AT_ONCE)):
        encodings = [np.array(each.ids, dtype=np.int32) for each in tokenizer.encode_batch_fast(portion)]
        ids.append(np.concatenate(encodings))
        lengths += map(len, encodings)
    return TokenizedTexts(np.concatenate(ids), np.cumsum(lengths, dtype=np.int64))


def _load_named(key: str, name: str) -> TextTokenizer:
    from transformers import AutoTokenizer

    local = local_files_only(key, name)
    try:
        loaded = AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=local)
    except Exception as error:  # whatever the library makes of what somebody else has written
        reason = sanitize_line(str(error).strip().split("\n")[0] or type(error).__name__)
        instead = ", or model.tokenizer=null to train one on the training texts" if key == "model.tokenizer" else ""
        raise InputError(
            f"{key}={sanitize_line(name)}: no tokenizer can be loaded ({reason}).\n"
            f"Give the name of a model on the hub (needs a network the first time), "
            f"a local folder with tokenizer.json or vocab.txt{instead}."
        ) from None
    if getattr(loaded, "backend_tokenizer", None) is None or loaded.pad_token_id is None:
        raise InputError(
            f"{key}={name} is not possible: give a model whose tokenizer is a fast one with a padding token."
        )
    return TextTokenizer(loaded.backend_tokenizer, loaded.pad_token_id)


def _train_wordpiece(texts: Sequence[str], vocab_size: int) -> bytes:
    """WordPiece over BERT's lower-cased words, as JSON of the tokenizers library; [PAD] is entry 0.

    The library numbers the pieces "##x" in the order of a hash table that is new in each process, and breaks ties
    between equally frequent pairs by these numbers. Here they get fixed numbers first, so that the same texts give the
    same vocabulary anywhere.
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
        vocab_size=max(vocab_size, len(special) + 2 * len(pieces)),  # the alphabet is never cut
        special_tokens=[*special, *pieces],
        show_progress=False,
    )
    scratch.train_from_iterator(texts, trainer)

    # A tokenizer of its own: in `scratch` the pieces are special, and would be found in the text itself.
    tokenizer = Tokenizer(models.WordPiece(scratch.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    )
    return str(tokenizer.to_str()).encode()
