"""Controlled tasks in which something depends on something else a known distance away, for three kinds of network.

    python experiments/train.py --config=configs/long_range.py:reverse/lstm_attention --workdir=runs/reverse

TASK is copy, reverse, recall, agreement or dependency (transformer_jax/data/long_range.py says what they are), the
network lstm, lstm_attention or transformer: about 236,000 parameters each. docs/long_range.md compares them.
"""

from ml_collections import ConfigDict

from configs import default

VOCABULARIES = {"copy": 30, "reverse": 30, "recall": 41, "agreement": 64, "dependency": 40}
"""Words of each task, and four special tokens."""
NETWORKS = ("lstm", "lstm_attention", "transformer")
LONGEST = 64
"""Tokens of the longest test sentence of any task, and room to spare."""


def get_config(argument: str = "reverse/transformer") -> ConfigDict:
    """`TASK/NETWORK`; a run of about a minute on one core."""
    task, _, network = argument.partition("/")
    if task not in VOCABULARIES or network not in NETWORKS:
        known = f"one of {', '.join(VOCABULARIES)}, a slash, and one of {', '.join(NETWORKS)}"
        raise ValueError(f"unknown variant {argument!r}; wanted: {known}")
    config = default.get_config()
    config.name = f"long_range-{task}-{network}"
    config.dataset.name = f"long_range/{task}"
    config.dataset.source_language = "question"
    config.dataset.target_language = "answer"
    config.dataset.max_length_ratio = 1000.0
    config.tokenizer.kind = "word"
    config.tokenizer.vocab_size = VOCABULARIES[task]
    config.batching.tokens_per_batch = 1024
    config.batching.num_shapes = 2
    config.batching.max_length = LONGEST
    config.model = section(network)
    config.model.max_length = LONGEST
    config.model.dropout_rate = 0.0
    config.model.embedding_dropout_rate = 0.0
    config.task.label_smoothing = 0.0
    config.optimizer.schedule = "linear"
    config.optimizer.peak_learning_rate = 4e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.clip_norm = 1.0
    config.training.total_steps = 600
    config.checkpoints.every_steps = 600
    config.checkpoints.keep_latest = 1
    config.evaluation.every_steps = 600
    config.evaluation.metric = "loss"
    config.evaluation.decode = "none"
    config.decoding.method = "greedy"
    config.decoding.max_source_length = LONGEST
    config.decoding.max_target_length = LONGEST
    config.decoding.max_length_offset = 4
    return config


def section(network: str) -> ConfigDict:
    """The model section of a network."""
    if network == "transformer":
        model = default.get_config().model
        model.d_model, model.d_ff, model.num_heads = 64, 256, 4
        model.num_encoder_layers = model.num_decoder_layers = 2
        model.norm_placement = "pre"
        return model
    model = default.recurrent()
    model.attention = "luong" if network == "lstm_attention" else "none"
    model.d_model = 82 if network == "lstm_attention" else 92
    return model
