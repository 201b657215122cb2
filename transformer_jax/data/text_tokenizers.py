"""Text to ids and back without losing a character: characters, bytes, byte-level BPE, SentencePiece with byte fallback.

Unlike the tokenizers of sentence pairs these keep white space as it is: a language model writes lines and indentation.
WordPiece does not, and is for encoders, which only read.
"""

import hashlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import sentencepiece

from transformer_jax.data.byte_level import ByteLevelTokenizer
from transformer_jax.data.cache import cache_directory, exclusive
from transformer_jax.data.tokenizers import (
    BOS,
    BYTE_VOCAB_SIZE,
    ENCODING_THREADS,
    EOS,
    MAX_TRAINING_LINES,
    PAD,
    TRAINING_THREADS,
    UNK,
    Tokenizer,
)
from transformer_jax.data.wordpiece import MASK, WordPieceTokenizer
from transformer_jax.errors import UserError

if TYPE_CHECKING:
    from transformer_jax.data.text import TextDataset

FORMAT = 1
FIRST = BOS + 1
SPECIAL = ("<pad>", "</s>", "<unk>", "<s>")


@dataclass(frozen=True)
class TextTokenizerConfig:
    """How text becomes tokens.

    Attributes:
      kind: `character` (those of the training text; others are unknown), `byte` (UTF-8), `bpe` or `unigram`
        (SentencePiece; what it has no piece for is written in bytes), `byte_bpe` (byte-level BPE, as GPT-2's), or, for
        encoders, `wordpiece` and `wordpiece_cased` (BERT's: words between single spaces, the first in lower case).
      vocab_size: number of ids, the four special ones included. With characters the most there may be, the most
        frequent first; bytes have 260.
      character_coverage: SentencePiece only: share of the characters of the training text that get a piece.
    """

    kind: Literal["character", "byte", "bpe", "unigram", "byte_bpe", "wordpiece", "wordpiece_cased"]
    vocab_size: int
    character_coverage: float

    def __post_init__(self) -> None:
        if self.kind == "byte" and self.vocab_size != BYTE_VOCAB_SIZE:
            raise UserError(f"tokenizer.vocab_size is {self.vocab_size}: bytes have {BYTE_VOCAB_SIZE}; set it to that")
        least = BYTE_VOCAB_SIZE + 1 if self.kind in ("bpe", "unigram", "byte_bpe") else FIRST + 1
        if self.vocab_size < least:
            raise UserError(f"tokenizer.vocab_size is {self.vocab_size}: with {self.kind} it must be at least {least}")
        if not 0 < self.character_coverage <= 1:
            raise UserError(
                f"tokenizer.character_coverage is {self.character_coverage}: it must be above 0 and at most 1"
            )


class TextTokenizer(Protocol):
    """Text to ids and back. Ids of the special tokens: PAD, EOS, UNK, BOS; they are skipped in decoding."""

    kind: str
    vocab_size: int

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without BOS and EOS."""

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row of ids."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """A readable name for each id, special tokens included."""

    def serialize(self) -> bytes:
        """What has to be kept of this tokenizer."""


class Marks(NamedTuple):
    """The ids that an encoder's input has besides those of text: [CLS], [SEP] and [MASK] (Devlin et al. 2019)."""

    first: int
    end: int
    mask: int


def marks_of(tokenizer: "TextTokenizer | Tokenizer") -> Marks:
    """[CLS] is BOS, [SEP] is EOS, and [MASK] is one more id than the tokenizer has, unless it has one itself."""
    return Marks(BOS, EOS, MASK if isinstance(tokenizer, WordPieceTokenizer) else tokenizer.vocab_size)


def ids_with_mask(tokenizer: "TextTokenizer | Tokenizer") -> int:
    """How many ids there are, [MASK] among them: rows of an encoder's table of embeddings."""
    return max(tokenizer.vocab_size, marks_of(tokenizer).mask + 1)


def _plain(row: Sequence[int]) -> list[int]:
    return [token for token in map(int, row) if token not in (PAD, EOS, UNK, BOS)]


class CharacterTokenizer:
    """Character i of ``characters`` has the id i + 4."""

    kind = "character"

    def __init__(self, characters: str):
        self._characters = characters
        self._ids = {character: i for i, character in enumerate(characters, FIRST)}
        self.vocab_size = FIRST + len(characters)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[self._ids.get(character, UNK) for character in text] for text in texts]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        return ["".join(self._characters[token - FIRST] for token in _plain(row)) for row in ids]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [SPECIAL[i] if i < FIRST else repr(self._characters[i - FIRST])[1:-1] for i in map(int, ids)]

    def serialize(self) -> bytes:
        return self._characters.encode("utf-8", "surrogatepass")


class ExactByteTokenizer:
    """UTF-8 bytes: byte b has the id b + 4. Bytes that are not valid UTF-8 are decoded to U+FFFD."""

    kind = "byte"
    vocab_size = BYTE_VOCAB_SIZE

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[byte + FIRST for byte in text.encode()] for text in texts]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        return [bytes(token - FIRST for token in _plain(row)).decode(errors="replace") for row in ids]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        name = lambda byte: chr(byte) if 33 <= byte < 127 else f"<0x{byte:02X}>"
        return [SPECIAL[i] if i < FIRST else name(i - FIRST) for i in map(int, ids)]

    def serialize(self) -> bytes:
        return b""


class PieceTokenizer:
    """A SentencePiece model (Kudo and Richardson 2018) trained by `_train_pieces`, which loses nothing."""

    def __init__(self, model: bytes, kind: str):
        self._model, self.kind = model, kind
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = int(self._processor.get_piece_size())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._processor.encode(list(texts), num_threads=ENCODING_THREADS)

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        rows = [_plain(row) for row in ids]
        return self._processor.decode(rows) if rows else []

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._processor.id_to_piece(int(token)) for token in ids]

    def serialize(self) -> bytes:
        return self._model


def _make(kind: str, content: bytes) -> TextTokenizer:
    if kind == "character":
        return CharacterTokenizer(content.decode("utf-8", "surrogatepass"))
    if kind == "byte_bpe":
        return ByteLevelTokenizer(content)
    if kind in ("wordpiece", "wordpiece_cased"):
        return WordPieceTokenizer(content)
    return ExactByteTokenizer() if kind == "byte" else PieceTokenizer(content, kind)


def tokenizer_digest(tokenizer: TextTokenizer) -> str:
    """SHA-256 of what decides the ids of a text."""
    return hashlib.sha256(tokenizer.kind.encode() + b" " + tokenizer.serialize()).hexdigest()


def save_text_tokenizer(tokenizer: TextTokenizer, directory: str | Path) -> None:
    """Writes `tokenizer.json` and `text.model`; data only."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "text.model").write_bytes(tokenizer.serialize())
    record = {"format": FORMAT, "kind": tokenizer.kind, "sha256": tokenizer_digest(tokenizer)}
    partial = directory / f"tokenizer.json.{os.getpid()}.partial"
    partial.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(partial, directory / "tokenizer.json")


def load_text_tokenizer(directory: str | Path) -> TextTokenizer:
    """Reads what `save_text_tokenizer` wrote. Runs nothing from the files.

    Raises:
      UserError: a file is missing, damaged, or of another format.
    """
    directory = Path(directory)
    try:
        record = json.loads((directory / "tokenizer.json").read_text(encoding="utf8"))
        if record["format"] != FORMAT:
            raise UserError(
                f"{directory}/tokenizer.json has format {record['format']}, this version reads {FORMAT}: "
                "use the version of transformer_jax that wrote it"
            )
        content = (directory / "text.model").read_bytes()
        if hashlib.sha256(f"{record['kind']} ".encode() + content).hexdigest() != record["sha256"]:
            raise UserError(f"{directory / 'text.model'} is damaged (its SHA-256 has changed): restore it from a copy")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: {directory} is not a whole tokenizer folder") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{directory / 'tokenizer.json'} cannot be read ({error}): restore it from a copy") from error
    return _make(record["kind"], content)


def train_text_tokenizer(dataset: "TextDataset", config: TextTokenizerConfig) -> TextTokenizer:
    """Trains on the training split only, or takes the result of an earlier call from the cache.

    Raises:
      UserError: there is too little training text for the vocabulary size.
    """
    if config.kind == "byte":
        return ExactByteTokenizer()
    key = json.dumps([FORMAT, sentencepiece.__version__, dataset.digest, asdict(config)], sort_keys=True)
    directory = cache_directory() / "tokenizers" / f"text-{hashlib.sha256(key.encode()).hexdigest()}"
    with exclusive(f"tokenizer-{directory.name}"):
        if not directory.exists():
            if config.kind == "character":
                counts = Counter(character for text in dataset.splits["train"] for character in text)
                chosen = sorted(counts, key=lambda c: (-counts[c], c))[: config.vocab_size - FIRST]
                made: TextTokenizer = CharacterTokenizer("".join(sorted(chosen)))
            elif config.kind == "byte_bpe":
                made = ByteLevelTokenizer.train(_lines(dataset), config.vocab_size)
            elif config.kind in ("wordpiece", "wordpiece_cased"):
                made = WordPieceTokenizer.train(_lines(dataset), config.vocab_size, config.kind == "wordpiece")
            else:
                made = PieceTokenizer(_train_pieces(dataset, config), config.kind)
            directory.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=directory.parent) as folder:
                save_text_tokenizer(made, Path(folder) / "new")
                os.rename(Path(folder) / "new", directory)
    return load_text_tokenizer(directory)


def _lines(dataset: "TextDataset") -> Iterator[str]:
    """Lines of the training documents, at most so many, evenly spaced; each with what ends it."""
    lines = (line for document in dataset.splits["train"] for line in document.splitlines(keepends=True))
    stride = -(-sum(1 for _ in lines) // MAX_TRAINING_LINES)
    lines = (line for document in dataset.splits["train"] for line in document.splitlines(keepends=True))
    yield from (line for i, line in enumerate(lines) if i % stride == 0)


def _train_pieces(dataset: "TextDataset", config: TextTokenizerConfig) -> bytes:
    model = BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(dataset),
            model_writer=model,
            model_type=config.kind,
            vocab_size=config.vocab_size,
            character_coverage=config.character_coverage,
            pad_id=PAD,
            eos_id=EOS,
            unk_id=UNK,
            bos_id=BOS,
            byte_fallback=True,
            # White space is text: nothing is added, removed or joined.
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n"],
            max_sentence_length=2**20,  # bytes; longer lines would be left out without a word
            num_threads=TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        if largest := re.search(r"size too high.*<= (\d+)", str(error)):
            raise UserError(
                f"tokenizer.vocab_size is {config.vocab_size}, which this training text is too small for: set it to "
                f"at most {largest[1]}"
            ) from error
        if smallest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
            raise UserError(
                f"tokenizer.vocab_size is {config.vocab_size}, but the characters of the training text and 256 bytes "
                f"need {smallest[1]}: set it to more, or lower tokenizer.character_coverage"
            ) from error
        raise
    return model.getvalue()
