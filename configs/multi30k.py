"""Multi30k: image captions, English, German and French, 29,000 training pairs (Elliott et al. 2016).

    python experiments/train.py --config=configs/multi30k.py:tiny --workdir=runs/multi30k-tiny

`tiny` is the published Transformer-Tiny recipe (Wu et al. 2021); the others have rotary positions and gated
feed-forward units in its place, which bring more than a point of BLEU. `ten_minutes` is what validation chose for some
ten minutes on CPU cores, and `best_tiny` the best recipe found for this size (docs/performance.md). Three runs
together, or one that has also learned from what these three make of the training sources
(--config.dataset.distilled), are better than each; `best`, twice as wide, is for the latter. `lstm` has recurrent
networks with attention in the Transformer's place (docs/long_range.md).

The data is downloaded, or read from a folder with --config.dataset.path=FOLDER; other directions with
--config.dataset.source_language=fr and so on.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "tiny") -> ConfigDict:
    """`tiny`, `ten_minutes`, `lstm`, `best`, `best_tiny`, or `smoke`: a few steps, to see that everything works."""
    config = default.get_config()
    config.name = f"multi30k-{variant}"
    config.dataset.name = "multi30k"
    config.tokenizer.vocab_size = 10000
    config.batching.tokens_per_batch = 4096
    config.batching.packed_length = 40
    config.batching.num_shapes = 2
    config.model.d_model = 128
    config.model.d_ff = 256
    config.model.num_encoder_layers = 4
    config.model.num_decoder_layers = 4
    config.model.num_heads = 4
    config.model.norm_placement = "pre"
    config.model.attention_bias = True
    config.model.dropout_rate = 0.3
    config.model.embedding_dropout_rate = 0.3
    config.optimizer.peak_learning_rate = 5e-3
    config.optimizer.warmup_steps = 2000
    config.training.total_steps = 3500
    config.checkpoints.every_steps = 100
    config.evaluation.every_steps = 500
    config.evaluation.weights = "average"
    config.decoding.beam_size = 5
    config.decoding.length_penalty = 1.0
    if variant == "tiny":
        return config
    if variant == "smoke":
        config.training.total_steps = 40
        config.training.log_every_steps = 10
        config.checkpoints.every_steps = 20
        config.evaluation.every_steps = 20
        return config
    config.model.dtype = "bfloat16_products"
    config.model.positions = "rotary"
    config.model.activation = "swiglu"
    config.model.d_ff = 176  # three matrices instead of two, with as many parameters
    config.optimizer.schedule = "warmup_stable_decay"
    config.optimizer.decay_fraction = 0.3
    config.optimizer.clip_norm = 1.0
    config.training.ema_decay = 0.998
    config.checkpoints.keep_latest = 2
    config.evaluation.weights = "ema"
    config.decoding.beam_size = 10
    config.decoding.length_penalty = 1.4
    if variant in ("ten_minutes", "lstm"):
        config.model.dropout_rate = 0.2
        config.model.embedding_dropout_rate = 0.2
        config.optimizer.warmup_steps = 700
        config.training.total_steps = 2800
        config.checkpoints.every_steps = 280
        config.evaluation.every_steps = 1400
        if variant == "lstm":
            config.tokenizer.vocab_size = 4000
            config.batching.tokens_per_batch = 2048
            config.batching.packed_length = 0
            config.batching.num_shapes = 8
            config.model = default.recurrent()
            config.model.d_model = 176
            config.optimizer.peak_learning_rate = 2e-3
            config.optimizer.warmup_steps = 500
            config.training.total_steps = 6050
            config.checkpoints.every_steps = 605
            config.evaluation.every_steps = 3025
        return config
    if variant in ("best", "best_tiny"):
        config.optimizer.warmup_steps = 1000
        config.training.total_steps = 5500
        config.checkpoints.every_steps = 500
        config.evaluation.every_steps = 500
        config.evaluation.max_sentences = 0
        if variant == "best":
            config.model.d_model = 256
            config.model.d_ff = 344
            config.optimizer.peak_learning_rate = 3e-3
        return config
    raise ValueError(f"unknown variant {variant!r}; known: tiny, ten_minutes, lstm, best, best_tiny, smoke")
