"""WMT 2014 English to German with the paper's settings in full (Vaswani et al. 2017, sections 5 and 6.1, Table 3).

    python experiments/train.py --config=configs/wmt14.py:base --workdir=runs/wmt14-base
    python experiments/average.py runs/wmt14-base --last=5 --output=runs/wmt14-base-averaged
    python experiments/evaluate.py runs/wmt14-base-averaged

TFDS downloads the data. Batches are of 25,000 tokens a side, for eight GPUs of the paper's time; on smaller devices
--config.training.accumulation=4 gives the same steps in a quarter of the memory.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "base") -> ConfigDict:
    """`base` (65 million parameters in the paper) or `big` (213 million)."""
    config = default.get_config()
    config.name = f"wmt14-{variant}"
    config.dataset.name = "wmt14_translate/de-en"
    config.dataset.source_language = "en"
    config.dataset.target_language = "de"
    config.tokenizer.kind = "bpe"
    config.tokenizer.joint = True
    config.tokenizer.vocab_size = 37_000
    config.batching.tokens_per_batch = 25_000  # of the longer side, padding included
    config.batching.num_shapes = 8
    config.batching.max_length = 256
    config.model.num_encoder_layers = 6
    config.model.num_decoder_layers = 6
    config.model.max_length = 306
    config.model.norm_placement = "post"
    config.model.positions = "sinusoidal"
    config.model.activation = "relu"
    config.model.tie_embeddings = "all"
    config.task.label_smoothing = 0.1
    config.task.loss_chunk = 4096
    config.optimizer.name = "adam"
    config.optimizer.schedule = "inverse_square_root"
    config.optimizer.warmup_steps = 4000
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.epsilon = 1e-9
    config.training.log_every_steps = 100
    config.evaluation.weights = "average"
    config.decoding.method = "beam"
    config.decoding.beam_size = 4
    config.decoding.length_penalty = 0.6
    config.decoding.max_length_factor = 1.0
    config.decoding.max_length_offset = 50
    config.decoding.max_source_length = 256
    config.decoding.max_target_length = 306
    if variant == "base":
        d_model, dropout = 512, 0.1
        config.model.d_ff = 2048
        config.model.num_heads = 8
        config.training.total_steps = 100_000
        config.evaluation.average = 5
        config.checkpoints.every_steps = 1500  # ten minutes of the paper's 0.4 s a step
    elif variant == "big":
        d_model, dropout = 1024, 0.3
        config.model.d_ff = 4096
        config.model.num_heads = 16
        config.training.total_steps = 300_000
        config.evaluation.average = 20
        config.checkpoints.every_steps = 600  # ten minutes of the paper's 1.0 s a step
    else:
        raise ValueError(f"unknown variant {variant!r}; known: base, big")
    config.model.d_model = d_model
    config.model.dropout_rate = dropout
    config.model.embedding_dropout_rate = dropout
    # Equation 3 at its highest point, step = warmup_steps.
    config.optimizer.peak_learning_rate = (d_model * config.optimizer.warmup_steps) ** -0.5
    config.checkpoints.keep_latest = config.evaluation.average
    config.evaluation.every_steps = 5 * config.checkpoints.every_steps
    return config
