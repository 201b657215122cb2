"""Reports for pages, with random weights: all that a page can show, for any texts, without a model."""

import numpy as np

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


def made_example(source: str, output: str, layers: int = 2, heads: int = 4, seed: int = 0) -> Example:
    """As of an encoder-decoder that translates ``source`` to ``output``, whose tokens are words."""
    rng = np.random.default_rng(seed)
    pieces = lambda text: [f"▁{word}" for word in text.split()]
    sources, outputs = [*pieces(source), "</s>"], [*pieces(output), "</s>"]
    read = ["<s>", *outputs[:-1]]
    S, T = len(sources), len(outputs)

    def weights(queries: int, keys: int, causal: bool = False) -> np.ndarray:
        scores = rng.normal(size=(layers, heads, queries, keys)) * rng.uniform(0.5, 4, size=(layers, heads, 1, 1))
        if causal:
            scores = np.where(np.tri(queries, keys, dtype=bool), scores, -np.inf)
        exponentials = np.exp(scores - scores.max(-1, keepdims=True))
        return exponentials / exponentials.sum(-1, keepdims=True)

    def view(name: str, queries: str, keys: str, values: np.ndarray) -> AttentionView:
        importance = rng.uniform(0, 1, size=(layers, heads))
        return AttentionView(
            name, f"The {name}", f"Who looks at whom in {name}.", queries, keys, range(layers), values, importance
        )

    others = rng.choice(outputs, size=(T, 4)).tolist()
    log_probs = np.sort(np.log(rng.dirichlet(np.full(5, 0.4), size=T).clip(1e-9)), axis=1)[:, ::-1]
    names = ["embedding", *(f"layer {i}" for i in range(layers))]
    changed = [*outputs[:-2], "▁else", "</s>"]
    return Example(
        title=source,
        rows={
            "source": Row("Source", sources, source),
            "output": Row("Output", outputs, output),
            "read": Row("Output so far", read, ""),
        },
        views=[
            view("encoder", "source", "source", weights(S, S)),
            view("decoder", "output", "read", weights(T, T, causal=True)),
            view("cross", "output", "source", weights(T, S)),
        ],
        hypotheses=[
            Hypothesis(output, outputs, log_probs[:, 0].tolist(), -0.5),
            Hypothesis(f"{output} else", changed, log_probs[:, 1][: len(changed)].tolist(), -0.75),
        ],
        beams=[
            [Beam(token, min(t, 1) - 1, -0.1 * t - 0.1, True), Beam("▁else", t % 2 if t else -1, -1.0 - t, False)]
            for t, token in enumerate(outputs[:-1])
        ],
        candidates=Candidates(
            "output",
            "Output",
            [[token, *four] for token, four in zip(outputs, others, strict=True)],
            log_probs,
            outputs,
            log_probs[:, 0],
        ),
        lens=Lens(
            "output",
            names,
            [[[*rng.choice(outputs, size=2), "▁x"] for _ in range(T)] for _ in names],
            rng.dirichlet(np.ones(3), size=(len(names), T)),
        ),
    )  # fmt: skip


def made_report(*examples: Example) -> Report:
    return Report("runs/made", {"Checkpoint": "step 7"}, "Importance is made up here.", examples)
