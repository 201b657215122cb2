"""Text in, text out: lines are cut where they are too long, decoded in bulk, and come back line by line."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from jax.sharding import Mesh

from transformer_jax.decoding.batching import QUEUE_BATCHES, Decoder, Hypothesis
from transformer_jax.decoding.config import DecodingConfig
from transformer_jax.decoding.interface import Decodable, Params
from transformer_jax.decoding.minimum_risk import Pool, PooledDecoder, rerank
from transformer_jax.errors import UserError

BREAKS = {
    "sentences": re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+|(?<=[。！？])"),  # noqa: RUF001
    "clauses": re.compile(r"(?<=[,;:–—])\s+|(?<=[，、；：])"),  # noqa: RUF001
    "words": re.compile(r"\s+"),
    "characters": re.compile(r"(?<=.)(?=.)", re.DOTALL),
}
"""Where a long line may be cut, best first."""

LINE_BREAKS = re.compile(r"[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")


class Tokenizer(Protocol):
    """What translation asks of a tokenizer."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text, without EOS."""

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Text of each list of tokens."""


class TokenizerPair(Protocol):
    """The tokenizers of both sides."""

    @property
    def source(self) -> Tokenizer: ...

    @property
    def target(self) -> Tokenizer: ...


@dataclass(frozen=True)
class Translation:
    """One translation of a line, itself one without tabs: score as it was ranked by, natural log-probability; sums if
    the line was cut.
    """

    text: str
    score: float
    log_prob: float


@dataclass
class Report:
    """Counts of what was translated. ``splits``: long lines by the weakest place where one had to be cut."""

    lines: int
    empty: int
    tokens: int
    splits: dict[str, int]

    def __str__(self) -> str:
        text = f"{self.lines} lines, {self.empty} of them empty, {self.tokens} output tokens"
        cuts = ", ".join(f"{count} at {kind}" for kind, count in self.splits.items() if count)
        return text + (f"; lines over the model's length cut: {cuts}" if cuts else "")


class Translator:
    """Translates lines with one model, or a pool of them. ``report`` counts what has been done since it was made."""

    def __init__(
        self,
        model: Decodable | Pool,
        params: Params,
        tokenizers: TokenizerPair,
        config: DecodingConfig,
        mesh: Mesh | None = None,
    ) -> None:
        self.tokenizers, self.config = tokenizers, config
        self.decoder: Any
        if isinstance(model, Pool):
            if config.rerank == "none":
                raise UserError(
                    "Candidates are pooled for decoding.rerank, which is 'none'; set it to 'chrf' or 'bleu'."
                )
            self.decoder = PooledDecoder(model, config, mesh)
        else:
            self.decoder = Decoder(model, config, mesh)
        self.params = params
        self.report = Report(0, 0, 0, dict.fromkeys(BREAKS, 0))

    @property
    def params(self) -> Params:
        """The parameters translated with; those of another checkpoint can be set at any time."""
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        self._params = self.decoder.place(params)

    def translate(self, lines: Sequence[str], prefixes: Sequence[str] | None = None) -> list[str]:
        """The best translation of each line, in order; an empty line gives an empty one.

        Raises: UserError naming a line that is too long, when ``long_lines`` is "refuse".
        """
        return [best[0].text for best in self.stream(lines, prefixes)]

    def stream(self, lines: Iterable[str], prefixes: Sequence[str] | None = None) -> Iterator[list[Translation]]:
        """The n best translations of each line, in order, at least one each, given out chunk by chunk.

        Args:
          lines: read no further than the chunk at work, so a stream of any length will do.
          prefixes: text that each line's translation must start with; only lines that need no cutting can
            have one.
        """
        source, first = iter(lines), self.report.lines
        while chunk := list(islice(source, QUEUE_BATCHES * self.config.batch_size)):
            start = self.report.lines - first
            given = list(prefixes[start : start + len(chunk)]) if prefixes is not None else [""] * len(chunk)
            if len(given) != len(chunk):
                raise UserError(f"translate: {len(prefixes or [])} prefixes for more lines; give one a line, or none.")
            yield from self._chunk(chunk, given)

    def _chunk(self, lines: list[str], prefixes: list[str]) -> list[list[Translation]]:
        numbered = list(enumerate(lines, self.report.lines + 1))
        cut = [self._cut(line.strip(), number) for number, line in numbered]
        for (number, _), pieces, prefix in zip(numbered, cut, prefixes, strict=True):
            if prefix and len(pieces) != 1:
                what = "was cut" if pieces else "is empty"
                raise UserError(f"translate: line {number} {what}, so it cannot have a forced prefix; leave it blank.")
        flat = [piece for pieces in cut for piece in pieces]
        # A sample belongs to (seed, line, piece), wherever the chunks begin.
        rows = [
            number * 1009 + i for (number, _), pieces in zip(numbered, cut, strict=True) for i in range(len(pieces))
        ]
        forced = [prefix for pieces, prefix in zip(cut, prefixes, strict=True) for _ in pieces]
        encoded_prefixes = self.tokenizers.target.encode(forced) if any(forced) else None
        found = iter(
            self._best(self.decoder.decode(self.params, self.tokenizers.source.encode(flat), encoded_prefixes, rows))
        )
        self.report.lines += len(lines)
        self.report.empty += sum(not pieces for pieces in cut)
        return [self._join(line, [next(found) for _ in pieces]) for line, pieces in zip(lines, cut, strict=True)]

    def _best(self, found: list[list[Hypothesis]]) -> list[list[Hypothesis]]:
        if self.config.rerank == "none":
            return found
        decode = self.tokenizers.target.decode
        return [rerank(candidates, decode([h.tokens for h in candidates]), self.config) for candidates in found]

    def _join(self, line: str, pieces: list[list[Hypothesis]]) -> list[Translation]:
        """The j-th best of each piece make up the j-th best of the line."""
        count = min(map(len, pieces), default=0)
        if not count:
            return [Translation("", 0.0, 0.0)]
        space = " " if " " in line.strip() else ""
        joined = []
        for j in range(count):
            chosen = [piece[j] for piece in pieces]
            texts = self.tokenizers.target.decode([hypothesis.tokens for hypothesis in chosen])
            score, log_prob = (sum(getattr(h, name) for h in chosen) for name in ("score", "log_prob"))
            # A model of bytes may write line breaks and tabs, which would break the alignment of files.
            joined.append(Translation(LINE_BREAKS.sub(" ", space.join(texts)), score, log_prob))
        self.report.tokens += sum(len(piece[0].tokens) for piece in pieces)
        return joined

    def _cut(self, line: str, number: int) -> list[str]:
        """The pieces to translate: none of an empty line, one of a line that fits."""
        limit = self.config.max_source_length
        if not line:
            return []
        if self._fits(line):
            return [line]
        if self.config.long_lines == "refuse":
            raise UserError(
                f"translate: line {number} has {len(self.tokenizers.source.encode([line])[0]) + 1} tokens; "
                f"the model takes {limit}. Shorten it, or use long_lines='split'."
            )
        pieces, weakest = self._split(line, 0, number)
        self.report.splits[list(BREAKS)[weakest]] += 1
        return pieces

    def _fits(self, text: str) -> bool:
        return len(self.tokenizers.source.encode([text])[0]) < self.config.max_source_length

    def _split(self, text: str, level: int, number: int) -> tuple[list[str], int]:
        """Pieces that fit, and the weakest kind of break used.

        Sentences stay apart, as the model knows them; weaker breaks are used as rarely as the length allows.
        """
        if level == len(BREAKS):
            raise UserError(
                f"translate: line {number} has a character {text!r} of more tokens than the model takes, "
                f"{self.config.max_source_length}; remove it."
            )
        parts = split_after(list(BREAKS.values())[level], text)
        if level:
            parts = self._pack(parts)
        pieces, weakest = [], level if len(parts) > 1 else 0
        for part in parts:
            if self._fits(part.strip()):
                pieces.append(part.strip())
            else:
                inner, inner_weakest = self._split(part, level + 1, number)
                pieces += inner
                weakest = max(weakest, inner_weakest)
        return [piece for piece in pieces if piece], weakest

    def _pack(self, parts: list[str]) -> list[str]:
        """Neighbours joined as long as they fit."""
        packed: list[str] = []
        for part in parts:
            if packed and self._fits((packed[-1] + part).strip()):
                packed[-1] += part
            else:
                packed.append(part)
        return packed


def split_after(pattern: re.Pattern[str], text: str) -> list[str]:
    """Cuts text behind each match; nothing is lost: the parts joined are the text."""
    ends = [match.end() for match in pattern.finditer(text) if 0 < match.end() < len(text)]
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
