"""What a run does with a text, as an `Example`: its search, and what the network computes as it reads the best output.

Notation: L layers, H heads, T positions, V vocabulary, k candidates.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import log_softmax

from transformer_jax.analysis.capture import Inputs, alone, unpadded
from transformer_jax.analysis.interpret.heads import attentions, gradient_importance_on
from transformer_jax.analysis.interpret.lens import logit_lens_on
from transformer_jax.analysis.run import Run
from transformer_jax.analysis.spotlight.report import (
    AttentionView,
    Beam,
    Candidates,
    Example,
    Hypothesis,
    Lens,
    Report,
    Row,
)
from transformer_jax.data.tokenizers import BOS, EOS, PAD
from transformer_jax.decoding.tracing import Alive, Trace
from transformer_jax.errors import UserError

NUM_CANDIDATES = 6
IMPORTANCE = (
    "How steeply the loss of this output, in nats per token, changes as a head's output is scaled: |∂loss/∂head| "
    "(Michel et al. 2019, eq. 2), for this text alone."
)
WEIGHTS = re.compile(r"(?P<stack>\w+)/layer_(?P<layer>\d+)/(?P<attention>\w+)/weights")


@dataclass(frozen=True)
class Layout:
    """How a family's inputs and predictions are shown.

    Attributes:
      rows: a name and a title for each of the network's inputs; what is predicted is the last.
      ahead: at its position t the network predicts token t + ahead of that input.
      predicted: a title for what is predicted at all positions.
      search: settings of the search that differ from the run's own, unless they are given.
      views: name, title and explanation of each attention by its path; in this order they are shown.
    """

    rows: tuple[tuple[str, str], ...]
    ahead: int
    predicted: str
    search: dict[str, Any]
    views: dict[str, tuple[str, str, str]]


LAYOUTS = {
    "translation": Layout(
        (("source", "Source"), ("output", "Output")),
        0,
        "Output",
        {},
        {
            "encoder/self_attention": (
                "encoder",
                "Encoder self-attention",
                "Each token of the source looks at all of them.",
            ),
            "decoder/self_attention": (
                "decoder",
                "Decoder self-attention",
                "To predict a token of the output, the decoder looks at what it has written before.",
            ),
            "decoder/cross_attention": (
                "cross",
                "Cross-attention",
                "To predict a token of the output, the decoder looks at the source.",
            ),
        },
    ),
    "language_model": Layout(
        (("text", "Text"),),
        1,
        "What follows each token of the text",
        {"max_tokens": 16},
        {
            "decoder/self_attention": (
                "self",
                "Self-attention",
                "To predict what follows a token, the model looks at that token and those before it.",
            )
        },
    ),
}
"""By families. A part that a network lacks, such as the encoder's attention of an LSTM, is not shown."""


def examine(run: Run, texts: Sequence[str], **settings: Any) -> Report:
    """What a run does with each text.

    Args: settings: of its search, as for `Run.search`; a beam search, whose n best are all shown.
    Raises: UserError for a family that cannot be shown, and for texts that are empty or too long, naming the text.
    """
    if run.config.family not in LAYOUTS:
        raise UserError(
            f"{run.config.name} is of the family {run.config.family}; Spotlight shows {', '.join(LAYOUTS)}."
        )
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise UserError(f"Text {number} is empty; leave it out.")
    config: Any = run.config
    settings = {"method": "beam", **LAYOUTS[config.family].search, **settings}
    settings.setdefault("n_best", settings.get("beam_size", config.decoding.beam_size))
    examples = []
    for number, text in enumerate(texts, 1):
        try:
            examples.append(example(run, text, **settings))
        except UserError as error:
            raise UserError(f"Text {number}, {text[:40]!r}: {error}") from error
    return Report(run.directory.path.name, _facts(run), IMPORTANCE, examples)


def _facts(run: Run) -> dict[str, str]:
    steps = ", ".join(f"{step:,}" for step in run.steps)
    return {"Experiment": f"{run.config.name} ({run.config.family})", "Checkpoint": f"{run.checkpoint} (step {steps})"}


def example(run: Run, text: str, **settings: Any) -> Example:
    """What a run does with one text; settings as for `Run.trace`. With max_tokens=0 a language model only reads it."""
    layout = LAYOUTS[run.config.family]
    writes = "max_tokens" not in layout.search or settings["max_tokens"] > 0
    searched = run.trace(text, **settings) if writes else Trace([], [])
    outputs = [hypothesis.tokens for hypothesis in searched.found]
    texts = run.decode(outputs)
    inputs = run.hypothesis_inputs(text, outputs) if writes else run.inputs([text])
    weights = ["*/weights"] if any(name.endswith("/weights") for name in run.points) else []
    captured = run.capture_inputs(inputs, [*weights, "logits"])
    log_probs = log_softmax(captured["logits"].astype(np.float32), axis=-1)
    best: Inputs = tuple(side[:1, : len(unpadded(side[0]))] for side in inputs)
    return Example(
        title=text,
        rows=_rows(run, best, [text, *texts[:1]] if len(best) == 2 else ["".join([text, *texts[:1]])], layout),
        views=_views(run, best, alone(captured, inputs, 0, run.sides), layout),
        hypotheses=[
            Hypothesis(
                texts[i], run.token_names([*h.tokens, EOS]), _of_output(log_probs[i], inputs, i, h.tokens), h.score
            )
            for i, h in enumerate(searched.found)
        ],
        beams=_beams(run, searched.steps, outputs[0] if outputs else []),
        candidates=_candidates(run, best, log_probs[0], layout, writes),
        lens=_lens(run, best, layout),
    )


def _rows(run: Run, inputs: Inputs, texts: Sequence[str], layout: Layout) -> dict[str, Row]:
    pieces = run.pieces(inputs)
    rows = {name: Row(title, tokens, of) for (name, title), tokens, of in zip(layout.rows, pieces, texts, strict=True)}
    if layout.ahead == 0:
        rows["read"] = Row("Written before", [*run.token_names([BOS]), *pieces[-1][:-1]], "")
    return rows


def _views(run: Run, inputs: Inputs, activations: dict[str, np.ndarray], layout: Layout) -> list[AttentionView]:
    found: dict[str, dict[int, str]] = {}
    for name in activations:
        if match := WEIGHTS.fullmatch(name):
            found.setdefault(f"{match['stack']}/{match['attention']}", {})[int(match["layer"])] = name
    importance = {}
    if attentions(run):  # an LSTM's attention has no heads to take out
        scores = gradient_importance_on(run, inputs)
        importance = dict(zip(scores.attentions, scores.scores, strict=True))
    views = []
    for path, (name, title, explanation) in layout.views.items():
        if layers := [layer for _, layer in sorted(found.get(path, {}).items())]:
            queries, keys = (layout.rows[side or 0][0] for side in run.sides(layers[0]))
            if layout.ahead == 0 and queries == keys == layout.rows[-1][0]:
                keys = "read"
            weights = np.stack([activations[layer] for layer in layers])
            of_heads = [importance[layer.removesuffix("/weights")] for layer in layers] if importance else None
            views.append(
                AttentionView(
                    name,
                    title,
                    explanation,
                    queries,
                    keys,
                    sorted(found[path]),
                    weights,
                    None if of_heads is None else np.stack(of_heads),
                )
            )
    return views


def _of_output(log_probs: np.ndarray, inputs: Inputs, row: int, tokens: Sequence[int]) -> list[float]:
    """Log-probabilities of an output's tokens and its end, from those of all tokens float32[T, V] at each position."""
    wanted = [*tokens, EOS]
    first = len(unpadded(inputs[-1][row])) - len(wanted)
    return [float(log_probs[first + i, token]) for i, token in enumerate(wanted)]


def _candidates(run: Run, inputs: Inputs, log_probs: np.ndarray, layout: Layout, ended: bool) -> Candidates:
    """``ended``: what follows the last token of a language model is its end; otherwise it is not known."""
    predicted = run.predicted(inputs)[0]
    log_probs = log_probs[: len(predicted)]
    taken = np.where(predicted == PAD, EOS, predicted)
    known = (predicted != PAD) | ended
    likeliest = np.argsort(-log_probs, axis=-1)[:, :NUM_CANDIDATES]
    return Candidates(
        row=layout.rows[-1][0],
        title=layout.predicted,
        tokens=[run.token_names(row) for row in likeliest.tolist()],
        log_probs=np.take_along_axis(log_probs, likeliest, axis=-1),
        taken=[
            token if is_known else "?" for token, is_known in zip(run.token_names(taken.tolist()), known, strict=True)
        ],
        taken_log_probs=np.where(known, log_probs[np.arange(len(taken)), taken], np.nan),
    )


def _beams(run: Run, steps: Sequence[Sequence[Alive]], best: Sequence[int]) -> list[list[Beam]]:
    on_best = lambda one: tuple(best[: len(one.tokens)]) == one.tokens
    return [
        [Beam(run.token_names(one.tokens[-1:])[0], one.parent, one.log_prob, on_best(one)) for one in alive]
        for alive in steps
    ]


def _lens(run: Run, inputs: Inputs, layout: Layout) -> Lens | None:
    if f"{run.model.last_stack}/layer_0/residual_before" not in run.points:  # a recurrent network has no such stream
        return None
    found = logit_lens_on(run, inputs, NUM_CANDIDATES)
    layers = ["embeddings", *(f"layer {i}" for i in range(len(found.tokens) - 1))]
    return Lens(layout.rows[-1][0], layers, found.names, found.probabilities)
