"""Word alignment read off cross-attention, against true alignments: alignment error rate (Och and Ney 2003)."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure

from transformer_jax.analysis.capture import unpadded
from transformer_jax.analysis.interpret.attention import KINDS, stacked
from transformer_jax.analysis.interpret.measures import batches
from transformer_jax.analysis.translation import TranslationRun
from transformer_jax.data.datasets import load_dataset
from transformer_jax.data.tokenizers import Tokenizer
from transformer_jax.errors import UserError

Link = tuple[int, int]
Spans = list[tuple[int, int]]
WORDS = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class AlignedPairs:
    """Sentence pairs whose alignment is known.

    Attributes:
      sources, targets: texts.
      spans: for each pair int[n, 4], which characters translate which: source start, source end, target start, target
        end, ends exclusive.
      categories: what kind of phrase each is.
    """

    sources: list[str]
    targets: list[str]
    spans: list[np.ndarray]
    categories: list[str]


@dataclass(frozen=True)
class AlignmentErrors:
    """Alignment error rates of cross-attention, 0 the best.

    Attributes:
      heads: float64[2, L, H] of each head; layers: float64[2, L] of each layer, its heads averaged. The first axis says
        which row of the weights aligns a target token: 0 the one that predicts it, 1 the next, which has read it
        (Chen et al. 2020, section 4.1).
      pairs: how many were aligned; skipped: how many were not, because the tokenizer does not give their text back.
    """

    heads: np.ndarray
    layers: np.ndarray
    pairs: int
    skipped: int

    @property
    def best(self) -> tuple[int, int, int]:
        """Row (0 or 1), layer and head of the lowest rate."""
        row, layer, head = np.unravel_index(self.heads.argmin(), self.heads.shape)
        return int(row), int(layer), int(head)

    def plot(self) -> Figure:
        """A bar for each head and for each layer's mean of heads."""
        _, layers, heads = self.heads.shape
        names = [f"layer {i} head {h}" for i in range(layers) for h in range(heads)]
        names += [f"layer {i}, heads averaged" for i in range(layers)]
        values = np.concatenate([self.heads.reshape(2, -1), self.layers], axis=1)
        figure = Figure(figsize=(7, 0.35 * len(names) + 1.2), layout="constrained")
        axis = figure.subplots()
        places = np.arange(len(names))
        for row, label in enumerate(("the row that predicts the token", "the row that has read it")):
            axis.barh(places + 0.4 * row - 0.2, values[row], height=0.38, label=label)
        axis.set_yticks(places, names)
        axis.invert_yaxis()
        axis.set(xlabel="alignment error rate", xlim=(0, 1))
        figure.legend(loc="outside upper center", ncols=2)
        return figure


def true_alignments(run: TranslationRun, split: str = "test", limit: int | None = None) -> AlignedPairs:
    """The first pairs of a split of ``phrases``, which knows what translates what.

    Raises: UserError for a run on another dataset, or a split that there is not.
    """
    config = run.config.dataset
    if config.name != "phrases":
        raise UserError(f"true_alignments: {config.name} has none; phrases has. Give `AlignedPairs` of your own.")
    splits = load_dataset(config).splits
    if split not in splits:
        raise UserError(f"true_alignments: there is no split {split!r}, only {', '.join(splits)}.")
    pairs = splits[split]
    records = [pairs.record(i) for i in range(min(len(pairs), limit or len(pairs)))]
    columns = {name: [record[name] for record in records] for name in ("source", "target", "alignment", "category")}
    return AlignedPairs(columns["source"], columns["target"], columns["alignment"], columns["category"])


def alignment_error_rates(run: TranslationRun, pairs: AlignedPairs) -> AlignmentErrors:
    """How well each head of cross-attention aligns words, in teacher forcing.

    Each target token is linked to the source token of its largest weight, and to none where that is the end. Tokens
    become words, links between tokens links between their words; words that one token covers count as one. Links
    between a word and a word of the same span are sure where the span has one word on either side, else possible.
    """
    skipped, counts = 0, []
    for pair in _aligned(run, pairs):
        if pair is None:
            skipped += 1
            continue
        units = [_units(text, tokens) for text, tokens in (pair.source, pair.target)]
        sure, possible = _gold(pair.spans, *units)
        words = [_words(unit, tokens) for unit, (_, tokens) in zip(units, (pair.source, pair.target), strict=True)]
        link = lambda best, of=words: {(of[0][s], of[1][t]) for t, s in enumerate(best) if s < len(of[0])}
        counts.append([[_counts(link(best), sure, possible) for best in row] for row in pair.strongest()])
        layers, heads = pair.weights.shape[:2]
    if not counts:
        raise UserError("alignment_error_rates: there is no pair whose text the tokenizer gives back.")
    total = np.sum(counts, axis=0)
    rates = 1.0 - total[..., :2].sum(-1) / total[..., 2:].sum(-1)
    of_heads, of_layers = np.split(rates, [layers * heads], axis=1)
    return AlignmentErrors(of_heads.reshape(2, layers, heads), of_layers, len(counts), skipped)


def error_rate(found: set[Link], sure: set[Link], possible: set[Link]) -> float:
    """1 - (|A ∩ S| + |A ∩ P|) / (|A| + |S|) for links A, S and P ⊇ S (Och and Ney 2003, section 5.1); 0 of nothing."""
    in_sure, in_possible, size, size_of_sure = _counts(found, sure, possible)
    return 1.0 - (in_sure + in_possible) / (size + size_of_sure) if size + size_of_sure else 0.0


def span_accuracy(run: TranslationRun, pairs: AlignedPairs, select: Callable[[str], bool]) -> np.ndarray:
    """How often each head looks at the right place while it predicts some of the words.

    Args: select: which spans count, by their source text: ``lambda text: any(map(str.isdigit, text))`` for numbers.
    Returns: float64[2, L, H], rows as in `AlignmentErrors`: of the target tokens in selected spans, the share whose
      largest weight is on a source token of the same span.
    """
    hits = []
    for pair in _aligned(run, pairs):
        if pair is None:
            continue
        (text, source), (_, target) = pair.source, pair.target
        layers, heads = pair.weights.shape[:2]
        best = pair.strongest()[:, : layers * heads].reshape(2, layers, heads, -1)
        for t, token in enumerate(target):
            spans = [(a, b) for a, b, c, d in pair.spans.tolist() if _overlap(token, (c, d)) and select(text[a:b])]
            if spans:
                right = [s for s, other in enumerate(source) if any(_overlap(other, span) for span in spans)]
                hits.append(np.isin(best[..., t], right))
    if not hits:
        raise UserError("span_accuracy: no span is selected; let `select` choose some.")
    return np.mean(hits, axis=0)


@dataclass(frozen=True)
class _Aligned:
    """Both texts, each with the spans of its tokens; which characters translate which; weights[L, H, T + 1, S + 1]."""

    source: tuple[str, Spans]
    target: tuple[str, Spans]
    spans: np.ndarray
    weights: np.ndarray

    def strongest(self) -> np.ndarray:
        """int[2, L·H + L, T]: the source token of the largest weight of each head, then of each layer's mean of heads,
        in the row that predicts a target token and in the row that has read it."""
        w = self.weights
        best = np.concatenate([w.reshape(-1, *w.shape[2:]), w.mean(axis=1)]).argmax(-1)
        return np.stack([best[:, :-1], best[:, 1:]])


def _aligned(run: TranslationRun, pairs: AlignedPairs) -> Iterator[_Aligned | None]:
    """Each pair; None where the tokenizer does not give the text back."""
    inputs = run.inputs(pairs.sources, pairs.targets)
    tokenizers = (run.tokenizers.source, run.tokenizers.target)
    for members, padded in batches(run, inputs):
        weights = stacked(run.capture_inputs(padded, [KINDS["cross"]]), KINDS["cross"])
        for row, i in enumerate(members):
            texts = (pairs.sources[i], pairs.targets[i])
            spans = [_token_spans(t, unpadded(side[i])[:-1]) for t, side in zip(tokenizers, inputs, strict=True)]
            if any(text != read for text, (read, _) in zip(texts, spans, strict=True)):
                yield None
            else:
                own = weights[row, :, :, : len(spans[1][1]) + 1, : len(spans[0][1]) + 1]
                yield _Aligned(spans[0], spans[1], pairs.spans[i], own)


def _token_spans(tokenizer: Tokenizer, tokens: list[int]) -> tuple[str, Spans]:
    """The text of tokens, and which characters of it each adds."""
    prefixes = tokenizer.decode([tokens[:k] for k in range(len(tokens) + 1)])
    return prefixes[-1], list(pairwise(map(len, prefixes)))


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _units(text: str, tokens: Spans) -> Spans:
    """Spans of words; neighbours that one token reaches into are one."""
    units: Spans = []
    for match in WORDS.finditer(text):
        start, end = match.span()
        bridged = units and any(a < start < b and text[a:start].strip() for a, b in tokens)
        units[-1:] = [(units[-1][0], end)] if bridged else [*units[-1:], (start, end)]
    return units


def _word(units: Spans, token: tuple[int, int]) -> int:
    """The number of the word that a token is a part of; of white space alone, of the word that follows."""
    inside = [i for i, unit in enumerate(units) if _overlap(unit, token)]
    return inside[0] if inside else next((i for i, unit in enumerate(units) if unit[0] >= token[1]), len(units) - 1)


def _words(units: Spans, tokens: Spans) -> list[int]:
    return [_word(units, token) for token in tokens]


def _gold(spans: np.ndarray, source: Spans, target: Spans) -> tuple[set[Link], set[Link]]:
    sure, possible = set(), set()
    for a, b, c, d in spans.tolist():
        rows = [i for i, unit in enumerate(source) if _overlap(unit, (a, b))]
        columns = [j for j, unit in enumerate(target) if _overlap(unit, (c, d))]
        links = {(i, j) for i in rows for j in columns}
        possible |= links
        if len(links) == 1:
            sure |= links
    return sure, possible


def _counts(found: set[Link], sure: set[Link], possible: set[Link]) -> tuple[int, int, int, int]:
    return len(found & sure), len(found & possible), len(found), len(sure)
