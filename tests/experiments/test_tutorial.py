"""The tutorial, whole, on a smaller dataset and model than its own."""

import functools

from tests.made_files import CHECKOUT
from transformer_jax.data import phrases

SMALL = {
    "tokenizer.vocab_size": 300,
    "batching.tokens_per_batch": 1024,
    "batching.num_shapes": 1,
    "batching.max_length": 48,
    "model.d_model": 32,
    "model.d_ff": 64,
    "model.num_encoder_layers": 1,
    "model.num_decoder_layers": 1,
    "training.total_steps": 40,
    "training.log_every_steps": 20,
    "checkpoints.every_steps": 40,
    "evaluation.every_steps": 40,
    "evaluation.metric": "loss",
    "evaluation.decode": "none",
    "decoding.beam_size": 1,
    "decoding.max_target_length": 48,
}


def test_the_tutorial_runs_from_training_to_what_breaks(tmp_path, monkeypatch, capsys):
    small = functools.partial(phrases.open_phrases, sizes={"train": 1500, "validation": 24, "test": 24})
    monkeypatch.setattr(phrases, "open_phrases", small)
    monkeypatch.setenv("TRANSFORMER_JAX_PREPARED", "1")
    monkeypatch.chdir(CHECKOUT)
    script = CHECKOUT / "experiments" / "tutorial.py"
    source = script.read_text()
    overrides = [f"{key}={value}" for key, value in SMALL.items()]
    for own, smaller in (
        ('Path("runs/phrases"), 2000', f"Path({str(tmp_path / 'run')!r}), 24"),
        ("list[str] = []", f"list[str] = {overrides}"),
    ):
        assert source.count(own) == 1
        source = source.replace(own, smaller)
    names: dict = {"__name__": "tutorial"}
    exec(compile(source, script, "exec"), names)
    shown = capsys.readouterr().out
    assert f"Numbers are aligned best by layer 0, head {names['head']}." in shown
    assert "phrases with numbers in digits: exactly right" in shown
    assert len(names["before"]) == len(names["after"]) == 24
    assert (
        not names["ablated"]
        .capture(["one"], ["eins"], names=["decoder/*/cross_attention/heads"])["decoder/layer_0/cross_attention/heads"][
            :, names["head"]
        ]
        .any()
    )
    assert names["numbers"].argmax() == names["head"]
    assert 0 < names["errors"].heads.min() < 1
