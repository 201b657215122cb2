"""Named points: no trace when nobody looks, the same names however a model is run, and what edits may do."""

import dataclasses
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.tiny import BASE, random_parameters, run, tiny_config, token_batch
from transformer_jax.errors import UserError
from transformer_jax.models.taps import COLLECTION, Interventions
from transformer_jax.models.transformer import EncoderDecoder, IncrementalDecoder
from transformer_jax.training.tasks import TaskConfig, TranslationTask

LAYER = {
    "residual_before",
    "residual_after_self_attention",
    "residual_after",
    "self_attention_output",
    "feed_forward_output",
    "feed_forward/neurons",
    *(f"self_attention/{point}" for point in ("queries", "keys", "values", "weights", "heads")),
}
CROSS = {
    "residual_after_cross_attention",
    "cross_attention_output",
    *(f"cross_attention/{point}" for point in ("queries", "keys", "values", "weights", "heads")),
}
NAMES = {
    "source_embeddings",
    "target_embeddings",
    "encoder/output",
    "decoder/output",
    "logits",
    *(f"encoder/layer_0/{point}" for point in LAYER),
    *(f"decoder/layer_0/{point}" for point in LAYER | CROSS),
}


def captured(config: Any, params: Any, *args: Any, method: Any = None) -> tuple[Any, dict[str, Any]]:
    """The output, and the activations by name."""
    apply = lambda p, a: EncoderDecoder(config).apply({"params": p}, *a, method=method, mutable=[COLLECTION])
    output, state = jax.jit(apply)(params, args)
    flat = jax.tree_util.tree_leaves_with_path(state.get(COLLECTION, {}))
    return output, {"/".join(key.key for key in path[:-1]): leaf for path, leaf in flat}


def without_metadata(text: str) -> list[str]:
    """Instructions, without where in which file each was written."""
    return [line.split(", metadata=")[0] for line in text.splitlines() if not re.match(r"\d|[A-Z]\w+$", line)]


@pytest.mark.parametrize("changes", [{"scan_layers": True, "remat": "dots"}, {"attention_implementation": "xla"}])
def test_the_compiled_step_is_the_same_with_and_without_points(monkeypatch, changes):
    config = tiny_config(**BASE, **changes)
    task = TranslationTask(EncoderDecoder(config), TaskConfig(0.1, "none", 0.0, 0.0, 8))
    params, (source, target) = random_parameters(config), token_batch()
    batch = {"source": source, "target": target}

    def programs() -> tuple[str, list[str]]:
        loss = lambda p, batch: task.loss(p, batch, jnp.arange(3, dtype=jnp.uint32))[0]
        lowered = jax.jit(jax.grad(loss)).lower(params, batch)
        return lowered.as_text(), without_metadata(lowered.compile().as_text())

    with_points = programs()
    for name, module in list(sys.modules.items()):
        if name.startswith("transformer_jax.models.") and hasattr(module, "tap"):
            monkeypatch.setattr(module, "tap", lambda module, point, value: value)
    _, points = captured(tiny_config(**BASE), random_parameters(tiny_config(**BASE)), source, target)
    assert points == {}  # so the mechanism is really gone
    jax.clear_caches()
    assert programs() == with_points
    assert "dot" in "".join(with_points[1])


def test_names_are_those_that_are_promised():
    config = tiny_config(**BASE)
    _, points = captured(config, random_parameters(config), *token_batch())
    assert set(points) == NAMES


def test_all_names_exist_while_decoding():
    config = tiny_config(**BASE)
    model, params, (source, _) = EncoderDecoder(config), random_parameters(config), token_batch()

    def names(method: str, *args: Any) -> set[str]:
        apply = lambda p, *a: model.apply({"params": p}, *a, method=method, mutable=[COLLECTION])[1]
        flat = jax.tree_util.tree_leaves_with_path(jax.eval_shape(apply, params, *args)[COLLECTION])
        return {"/".join(key.key for key in path[:-1]) for path, _ in flat}

    cache = jax.eval_shape(lambda p: IncrementalDecoder(model).start(p, source, 2, 5), params)
    encode = lambda p: model.apply({"params": p}, source, 2, 5, method="start", mutable=[COLLECTION])[1]
    state = jax.eval_shape(encode, params)[COLLECTION]
    start = {"/".join(k.key for k in path[:-1]) for path, _ in jax.tree_util.tree_leaves_with_path(state)}
    assert start | names("step", cache, jnp.ones((3, 2), jnp.int32)) == NAMES


@pytest.mark.parametrize(
    "changes", [{}, {"positions": "relative", "num_kv_heads": 2}, {"positions": "rotary", "norm_placement": "pre"}]
)
def test_attention_is_captured_the_plain_way_and_agrees_with_a_kernel_that_hides_it(monkeypatch, changes):
    plain = tiny_config(**BASE, **changes)
    other = dataclasses.replace(plain, attention_implementation="xla")
    params, batch = random_parameters(plain), token_batch()
    calls, kernel = [], jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *a, **kw: calls.append(kw) or kernel(*a, **kw))
    np.testing.assert_allclose(run(other, params, *batch), run(plain, params, *batch), atol=2e-5)
    # The encoder's attention, the decoder's own, and that to the encoder.
    assert calls == [{"is_causal": causal, "implementation": "xla"} for causal in (False, True, False)]
    logits, points = captured(other, params, *batch)
    expected, plainly = captured(plain, params, *batch)
    np.testing.assert_array_equal(logits, expected)
    jax.tree.map(np.testing.assert_array_equal, points, plainly)
    np.testing.assert_allclose(points["decoder/layer_0/cross_attention/weights"].sum(-1), 1.0, atol=1e-6)


def test_a_kernel_that_cannot_do_what_is_asked_is_refused():
    with pytest.raises(UserError, match=r"attention_dropout_rate=0\.1 to 0, or use 'plain'"):
        tiny_config(attention_implementation="xla", attention_dropout_rate=0.1)
    with pytest.raises(UserError, match=r"needs dtype='bfloat16' and a head size .* 'float32' and 4"):
        tiny_config(attention_implementation="cudnn")


def test_edits_replace_what_passes_in_their_order():
    config = tiny_config(**BASE)
    params, batch = random_parameters(config), token_batch()
    seen = []

    def apply(edits: dict[str, Any]) -> Any:
        model = EncoderDecoder(config, interventions=Interventions(edits))
        return jax.jit(lambda p: model.apply({"params": p}, *batch))(params)

    def note(value: Any, name: str) -> Any:
        seen.append(name)
        return value

    same = apply({"*": note})
    np.testing.assert_array_equal(same, run(config, params, *batch))
    assert set(seen) == NAMES
    plus_one, doubled = lambda value, name: value + 1, lambda value, name: 2 * value
    np.testing.assert_allclose(apply({"logits": plus_one, "log*": doubled}), 2 * (same + 1), rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"logits is float32\[3, 6, 13\], but the edit for 'logits' gives float32\[3, 6\]"
    ):
        apply({"logits": lambda value, name: value[..., 0]})
