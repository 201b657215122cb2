"""A tiny translation task for tests, and its optimizer."""

from typing import Any

import numpy as np

from tests.models.tiny import tiny_config
from transformer_jax.models.recurrent import RecurrentConfig, RecurrentEncoderDecoder
from transformer_jax.models.transformer import EncoderDecoder
from transformer_jax.training.guard import GuardConfig
from transformer_jax.training.optimizers import OptimizerConfig
from transformer_jax.training.tasks import TaskConfig, TranslationTask

ADAM = OptimizerConfig(
    name="adam",
    schedule="inverse_square_root",
    peak_learning_rate=0.01,
    warmup_steps=2,
    decay_fraction=0.2,
    b1=0.9,
    b2=0.98,
    epsilon=1e-4,
    weight_decay=0.0,
    clip_norm=1.0,
)
GUARD = GuardConfig(explosion_factor=50.0, rollback_after=3, max_rollbacks=1, replay_every_steps=0)


def make_task(regularizer: Any = "none", **changes: Any) -> TranslationTask:
    """One layer in each stack, vocabulary 16, dropout."""
    sizes = dict(source_vocab_size=16, target_vocab_size=16, num_encoder_layers=1, num_decoder_layers=1)
    dropout = dict(dropout_rate=0.2, embedding_dropout_rate=0.1, attention_dropout_rate=0.1)
    config = tiny_config(**{**sizes, **dropout, **changes})
    return TranslationTask(EncoderDecoder(config), TaskConfig(0.1, regularizer, float(regularizer != "none"), 0.2, 8))


def make_recurrent_task(attention: Any) -> TranslationTask:
    """Two layers of LSTMs in each side, vocabulary 16, every dropout."""
    config = RecurrentConfig(
        source_vocab_size=16,
        target_vocab_size=16,
        d_model=16,
        num_layers=2,
        attention=attention,
        max_length=16,
        recurrent_dropout_rate=0.1,
    )
    return TranslationTask(RecurrentEncoderDecoder(config=config), TaskConfig(0.1, "none", 0.0, 0.0, 8))


def make_batch(seed: int = 0) -> dict[str, np.ndarray]:
    """Eight rows of ever fewer tokens, the last of padding alone."""
    rng = np.random.default_rng(seed)
    batch = {name: rng.integers(4, 14, (8, length)).astype(np.int32) for name, length in (("source", 6), ("target", 7))}
    for row in range(8):
        for tokens in batch.values():
            tokens[row, 7 - row :] = 0
    return batch
