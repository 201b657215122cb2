"""Your own parallel text: two line-aligned files a split, or one TSV file, plain or .gz.

    python experiments/train.py --config=configs/parallel_text.py --workdir=runs/mine \\
        --config.dataset.source_language=en --config.dataset.target_language=de \\
        --config.dataset.train=train.en,train.de --config.dataset.validation=valid.en,valid.de \\
        --config.dataset.test=test.en,test.de
    python experiments/evaluate.py runs/mine
    python experiments/translate.py runs/mine letter.en --output=letter.de

Meant for some 10,000 to a million pairs. With fewer, a smaller vocabulary (--config.tokenizer.vocab_size=2000) and
more dropout help; with more, configs/wmt14.py:base is the better start. Validation is what says when to stop: give
1,000 to 3,000 pairs that are not in the training files.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """A Transformer of about 10 million parameters; stops when validation BLEU no longer rises."""
    config = default.get_config()
    config.name = "parallel_text"
    config.dataset.name = "parallel_text"
    config.tokenizer.vocab_size = 8000
    config.tokenizer.sampling = 0.1
    config.batching.tokens_per_batch = 8192
    config.batching.num_shapes = 8
    config.model.d_model = 256
    config.model.d_ff = 1024
    config.model.num_encoder_layers = 4
    config.model.num_decoder_layers = 4
    config.model.num_heads = 4
    config.model.norm_placement = "pre"
    config.model.attention_bias = True
    config.model.dropout_rate = 0.2
    config.model.embedding_dropout_rate = 0.2
    config.optimizer.peak_learning_rate = 2e-3
    config.optimizer.warmup_steps = 2000
    config.optimizer.clip_norm = 1.0
    config.training.total_steps = 30_000
    config.checkpoints.every_steps = 500
    config.checkpoints.keep_latest = 5
    config.evaluation.every_steps = 1000
    config.evaluation.weights = "average"
    config.evaluation.average = 5
    config.evaluation.patience = 10
    config.decoding.length_penalty = 1.0
    return config
