"""Text to token ids and back: SentencePiece (BPE, unigram or words) trained on the training split, or plain bytes.

Every vocabulary begins with the same four ids: padding, end of sentence, unknown, beginning of sentence.
"""

import hashlib
import itertools
import json
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece

from transformer_jax.data.cache import cache_directory, exclusive
from transformer_jax.data.datasets import Dataset
from transformer_jax.data.subwords import SPACE, BpeDropout, UnigramSampling, WordSampler
from transformer_jax.errors import UserError

PAD, EOS, UNK, BOS = 0, 1, 2, 3
KINDS = ("bpe", "unigram", "word", "byte")
BYTE_VOCAB_SIZE = BOS + 1 + 256
FORMAT = 1
JOINT, APART = ("joint.model",), ("source.model", "target.model")
"""Files of SentencePiece models. One vocabulary may have two of them, that cut the texts of each side differently."""
MAX_TRAINING_LINES = 5_000_000  # a vocabulary does not improve beyond; more are taken evenly spaced
TRAINING_THREADS = 4  # a constant: the unigram model depends on how its sums are split among threads
ENCODING_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes tokens.

    Attributes:
      kind: `bpe` (Sennrich et al. 2016), `unigram` (Kudo 2018), `word` (what white space separates, the most
        frequent first) or `byte` (UTF-8 bytes, nothing is trained).
      vocab_size: number of ids, the four special ones included; of each side where `joint` is off.
        Bytes have 260.
      joint: one vocabulary for both languages, trained on both.
      character_coverage: fraction of the characters of the training text that get an id; the others become
        unknown tokens. 1.0 is right for alphabets, 0.9995 for Chinese and Japanese.
      sampling: subword regularisation of the training text. 0 is off. For `bpe`, the probability of dropping
        a merge (BPE-dropout, Provilkov et al. 2020; 0.1 there). For `unigram`, the smoothing parameter alpha
        of sampling from all segmentations (Kudo 2018, section 3.2; 0.1 to 0.5 there; smaller is more random).
    """

    kind: str
    vocab_size: int
    joint: bool
    character_coverage: float
    sampling: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"tokenizer.kind is {self.kind!r}: choose one of {', '.join(KINDS)}")
        if self.kind == "byte" and self.vocab_size != BYTE_VOCAB_SIZE:
            raise UserError(
                f"tokenizer.vocab_size is {self.vocab_size}: with tokenizer.kind='byte' it must be "
                f"{BYTE_VOCAB_SIZE} (256 bytes and 4 special tokens)"
            )
        if self.vocab_size <= BOS + 1:
            raise UserError(f"tokenizer.vocab_size is {self.vocab_size}: it must be more than {BOS + 1}")
        if not 0 < self.character_coverage <= 1:
            raise UserError(
                f"tokenizer.character_coverage is {self.character_coverage}: it must be above 0 and at most 1"
            )
        if not 0 <= self.sampling <= 1:
            raise UserError(f"tokenizer.sampling is {self.sampling}: it must be from 0 (off) to 1")
        if self.sampling and self.kind in ("word", "byte"):
            raise UserError(f"tokenizer.sampling is {self.sampling}: {self.kind}s have one segmentation; set it to 0")


class Tokenizer(Protocol):
    """Text of one language to ids and back. Ids of the special tokens: PAD, EOS, UNK, BOS."""

    vocab_size: int

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without BOS and EOS."""

    def sample(self, texts: Sequence[str], seed: int) -> list[list[int]]:
        """Like `encode`, with segmentations drawn at random: a pure function of (texts, seed)."""

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row of ids up to its EOS. PAD and BOS are left out; UNK is written as "⁇"."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """A readable name for each id, special tokens included."""

    def serialize(self) -> bytes:
        """What has to be kept of this tokenizer."""


def normalize(text: str) -> str:
    """What every tokenizer sees of a text: Unicode NFC, and every run of white space as one space.

    "▁" (U+2581) is white space here, because SentencePiece writes it so.


    SentencePiece's own default (`nmt_nfkc`) also rewrites characters: "½" to "1⁄2", "…" to "...", "²" to "2".
    Translations would then differ from their references in ways no model can mend, so it is not used:
    decode(encode(text)) equals normalize(text) as long as the vocabulary has all its characters.
    """
    return " ".join(unicodedata.normalize("NFC", text).replace(SPACE, " ").split())


def _until_eos(ids: Sequence[int]) -> list[int]:
    kept = itertools.takewhile(lambda token: token != EOS, map(int, ids))
    return [token for token in kept if token not in (PAD, BOS)]


class SentencePieceTokenizer:
    """A trained SentencePiece model (Kudo and Richardson 2018).

    Args:
      model: the serialised SentencePiece model.
      kind: `bpe`, `unigram` or `word`, as the model is.
      sampling: strength of subword sampling, as in `TokenizerConfig`.
      vocab_size: most ids there may be; pieces of the model beyond are unknown tokens.
    """

    def __init__(self, model: bytes, kind: str, sampling: float, vocab_size: int):
        self._model, self._kind, self._sampling, self._most = model, kind, sampling, vocab_size
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = min(vocab_size, int(self._processor.get_piece_size()))
        self._sampler: WordSampler = (BpeDropout if kind == "bpe" else UnigramSampling)(self._processor, sampling)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        rows = self._processor.encode([normalize(text) for text in texts], num_threads=ENCODING_THREADS)
        return self._known(rows)

    def _known(self, rows: list[list[int]]) -> list[list[int]]:
        """The rows with what is no id as an unknown token."""
        if self._processor.get_piece_size() == self.vocab_size:
            return rows
        return [[token if token < self.vocab_size else UNK for token in row] for row in rows]

    def sample(self, texts: Sequence[str], seed: int) -> list[list[int]]:
        if not self._sampling:
            return self.encode(texts)
        lines = [normalize(text).split() for text in texts]
        types: dict[str, int] = {}
        words = np.array([types.setdefault(word, len(types)) for line in lines for word in line], np.int64)
        if not len(words):
            return [[] for _ in texts]
        ids, lengths = self._sampler.draw(list(types), words, np.random.default_rng(seed))
        ends = np.append(0, lengths.cumsum())[np.append(0, np.cumsum([len(line) for line in lines]))]
        flat, bounds = ids.tolist(), ends.astype(int).tolist()
        return self._known([flat[start:end] for start, end in itertools.pairwise(bounds)])

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        rows = [_until_eos(row) for row in ids]
        return self._processor.decode(rows) if rows else []

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._processor.id_to_piece(int(token)) for token in ids]

    def serialize(self) -> bytes:
        return self._model

    def __reduce__(self) -> tuple:
        return SentencePieceTokenizer, (self._model, self._kind, self._sampling, self._most)


class ByteTokenizer:
    """UTF-8 bytes: byte b has the id b + 4."""

    vocab_size = BYTE_VOCAB_SIZE
    _OFFSET = BOS + 1

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[byte + self._OFFSET for byte in normalize(text).encode()] for text in texts]

    def sample(self, texts: Sequence[str], seed: int) -> list[list[int]]:
        return self.encode(texts)

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """As the protocol says; bytes that are not valid UTF-8 (a model can emit any) become U+FFFD."""
        rows = ([token - self._OFFSET for token in _until_eos(row) if token != UNK] for row in ids)
        return [bytes(row).decode(errors="replace") for row in rows]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        special = ("<pad>", "</s>", "<unk>", "<s>")
        name = lambda byte: chr(byte) if 33 <= byte < 127 else f"<0x{byte:02X}>"
        return [special[i] if i < self._OFFSET else name(i - self._OFFSET) for i in map(int, ids)]

    def serialize(self) -> bytes:
        return b""


@dataclass(frozen=True)
class TokenizerPair:
    """The tokenizers of both languages; `source` and `target` are one object when `config.joint` is on."""

    config: TokenizerConfig
    source: Tokenizer
    target: Tokenizer

    @property
    def digest(self) -> str:
        """SHA-256 of what decides the ids of a text without sampling."""
        parts = (self.config.kind.encode(), self.source.serialize(), self.target.serialize())
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()

    def save(self, directory: str | Path) -> None:
        """Writes `tokenizer.json` and the SentencePiece models beside it; data only, replaced atomically."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        digests = {}
        names = JOINT if self.source is self.target else APART
        for name, tokenizer in zip(names, (self.source, self.target), strict=False):
            content = tokenizer.serialize()
            if not content:
                break  # bytes need none
            digests[name] = hashlib.sha256(content).hexdigest()
            _replace(directory / name, content)
        record = {"format": FORMAT, "config": asdict(self.config), "sha256": digests}
        _replace(directory / "tokenizer.json", (json.dumps(record, indent=2) + "\n").encode())


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def pair_of_models(config: TokenizerConfig, models: Sequence[bytes]) -> TokenizerPair:
    """Makes the pair of one model (joint), two models, or none (bytes)."""
    tokenizers: list[Tokenizer]
    if config.kind == "byte":
        tokenizers = [ByteTokenizer() for _ in range(1 if config.joint else 2)]
    else:
        tokenizers = [
            SentencePieceTokenizer(model, config.kind, config.sampling, config.vocab_size) for model in models
        ]
    return TokenizerPair(config, tokenizers[0], tokenizers[-1])


def load_tokenizers(directory: str | Path) -> TokenizerPair:
    """Reads what `TokenizerPair.save` wrote. Runs nothing from the files.

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
        config, digests = TokenizerConfig(**record["config"]), record["sha256"]
        names = () if config.kind == "byte" else JOINT if JOINT[0] in digests else APART
        models = {name: (directory / name).read_bytes() for name in names}
        for name, model in models.items():
            if hashlib.sha256(model).hexdigest() != digests[name]:
                raise UserError(f"{directory / name} is damaged (its SHA-256 has changed): restore it from a copy")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: {directory} is not a whole tokenizer folder") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{directory / 'tokenizer.json'} cannot be read ({error}): restore it from a copy") from error
    return pair_of_models(config, list(models.values()))


def train_tokenizers(dataset: Dataset, config: TokenizerConfig) -> TokenizerPair:
    """Trains on the training split only, or takes the result of an earlier call from the cache.

    The same text and config give the same model, on any machine with the same version of SentencePiece.

    Raises:
      UserError: there is no training text, or too little (or too varied) for the vocabulary size.
    """
    if config.kind == "byte":
        return pair_of_models(config, [])
    trained_as = asdict(replace(config, sampling=0.0))  # sampling changes how a model is used, not the model
    key = json.dumps([FORMAT, sentencepiece.__version__, dataset.digest, trained_as], sort_keys=True)
    directory = cache_directory() / "tokenizers" / hashlib.sha256(key.encode()).hexdigest()
    with exclusive(f"tokenizer-{directory.name}"):
        if not directory.exists():
            if "train" not in dataset.splits or not len(dataset.splits["train"]):
                raise UserError("the training split is empty: a tokenizer needs training text")
            source, target = dataset.splits["train"].texts()
            corpora = [[source, target]] if config.joint else [[source], [target]]
            models = [_train(corpus, config) for corpus in corpora]
            directory.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=directory.parent) as folder:
                pair_of_models(config, models).save(Path(folder) / "new")
                os.rename(Path(folder) / "new", directory)
    trained = load_tokenizers(directory)
    models = [tokenizer.serialize() for tokenizer in (trained.source, trained.target)]
    return pair_of_models(config, models[:1] if config.joint else models)


def _lines(corpus: Sequence[Sequence[str]]) -> Iterator[str]:
    stride = -(-sum(map(len, corpus)) // MAX_TRAINING_LINES)
    for texts in corpus:
        yield from (normalize(text) for text in itertools.islice(texts, 0, None, stride))


def _train(corpus: Sequence[Sequence[str]], config: TokenizerConfig) -> bytes:
    """Trains one SentencePiece model on all texts of `corpus` and returns it serialised."""
    model = BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(corpus),
            model_writer=model,
            model_type=config.kind,
            vocab_size=config.vocab_size,
            character_coverage=config.character_coverage,
            pad_id=PAD,
            eos_id=EOS,
            unk_id=UNK,
            bos_id=BOS,
            unk_surface="⁇",
            normalization_rule_name="identity",
            max_sentence_length=2**20,  # bytes; longer lines would be left out without a word
            num_threads=TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        message = str(error)
        size = f"tokenizer.vocab_size is {config.vocab_size}"
        if largest := re.search(r"size too high.*<= (\d+)", message):
            raise UserError(
                f"{size}, which this training text is too small for: set it to at most {largest[1]}"
            ) from error
        if smallest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
            raise UserError(
                f"{size}, but the characters of the training text alone need {smallest[1]}: set it to more, "
                "or lower tokenizer.character_coverage"
            ) from error
        if "sentences_.empty()" in message:
            raise UserError(
                "the training split holds no text: a tokenizer needs training text; check the dataset"
            ) from error
        raise
    return model.getvalue()
