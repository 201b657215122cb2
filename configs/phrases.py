"""Localised phrases, generated on the spot: the dataset that needs no download.

    python experiments/train.py --config=configs/phrases.py --workdir=runs/phrases

Any two locales do: --config.dataset.source_language=fr --config.dataset.target_language=ja.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """A small Transformer that learns English to German phrases in about two minutes on four cores."""
    config = default.get_config()
    config.name = "phrases"
    config.dataset.name = "phrases"
    config.tokenizer.vocab_size = 2000
    config.batching.tokens_per_batch = 4096
    config.batching.num_shapes = 4
    config.batching.max_length = 64
    config.model.d_model = 128
    config.model.d_ff = 512
    config.model.num_encoder_layers = 2
    config.model.num_decoder_layers = 2
    config.model.num_heads = 4
    config.model.norm_placement = "pre"
    config.model.dropout_rate = 0.0
    config.model.embedding_dropout_rate = 0.0
    config.optimizer.schedule = "linear"
    config.optimizer.peak_learning_rate = 4e-3
    config.optimizer.warmup_steps = 200
    config.optimizer.clip_norm = 1.0
    config.task.label_smoothing = 0.05
    config.training.total_steps = 1200
    config.checkpoints.every_steps = 300
    config.checkpoints.keep_latest = 2
    config.evaluation.every_steps = 300
    config.evaluation.max_sentences = 500
    config.decoding.max_length_offset = 20
    config.decoding.max_source_length = 64
    config.decoding.max_target_length = 64
    return config
