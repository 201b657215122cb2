"""Encoder-only masked language models (BERT) on any text.

    python experiments/train.py --config=configs/masked_lm.py --workdir=runs/masked
    python experiments/train.py --config=configs/masked_lm.py:files --workdir=runs/mine \
        --config.dataset.path=FOLDER --config.dataset.train='*.txt' --config.dataset.validation=held_out.txt
    python experiments/train.py --config=configs/masked_lm.py:bert-base --workdir=runs/bert

`bert-base` and `bert-large` are the published sizes and settings (Devlin et al. 2019, section 3 and appendix A.2), with
masks drawn anew in every epoch and no next-sentence prediction (Liu et al. 2019, sections 4.1 and 4.2).
"""

from ml_collections import ConfigDict

from configs import default

BERT = {"bert-base": (12, 768, 12), "bert-large": (24, 1024, 16)}  # layers, width, heads


def base() -> ConfigDict:
    """A small BERT, on text of the installed Python."""
    config = default.common()
    config.family = "masked_lm"

    config.dataset = default.text()
    config.tokenizer = ConfigDict()
    config.tokenizer.kind = "bpe"
    config.tokenizer.vocab_size = 4096 - 1  # and [MASK]
    config.tokenizer.character_coverage = 0.9995

    config.batching = ConfigDict()
    config.batching.rows = 32
    config.batching.length = 128

    config.masking = ConfigDict()
    config.masking.rate = 0.15
    config.masking.mask_share = 0.8
    config.masking.random_share = 0.1
    config.masking.unit = "token"

    config.model = default.encoder()
    config.model.num_layers = 4
    config.model.d_model = 256
    config.model.d_ff = 1024
    config.model.num_heads = 4
    config.model.max_length = 512

    config.task = ConfigDict()
    config.task.label_smoothing = 0.0
    config.task.loss_chunk = 1024

    config.optimizer.name = "adamw"
    config.optimizer.schedule = "linear"
    config.optimizer.peak_learning_rate = 1e-3
    config.optimizer.warmup_steps = 500
    config.optimizer.b2 = 0.98
    config.optimizer.epsilon = 1e-6
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0

    config.training.total_steps = 5000
    config.checkpoints.every_steps = 500
    config.checkpoints.keep_latest = 2
    config.evaluation.every_steps = 500
    return config


def published(config: ConfigDict, layers: int, width: int, heads: int) -> None:
    """BERT's sizes and its recipe: a million batches of 256 rows of 512 tokens."""
    config.tokenizer.kind = "wordpiece"
    config.tokenizer.vocab_size = 30522
    config.batching.rows = 256
    config.batching.length = 512
    config.model.num_layers = layers
    config.model.d_model = width
    config.model.d_ff = 4 * width
    config.model.num_heads = heads
    config.model.dtype = "bfloat16"
    config.model.scan_layers = True
    config.optimizer.peak_learning_rate = 1e-4
    config.optimizer.warmup_steps = 10_000
    config.optimizer.b2 = 0.999
    config.training.total_steps = 1_000_000
    config.checkpoints.every_steps = 5000
    config.evaluation.every_steps = 5000


def get_config(variant: str = "python") -> ConfigDict:
    """`python`, `files`, `bert-base`, `bert-large`, or `smoke`: a few steps, to see that all works."""
    config = base()
    config.name = f"masked_lm-{variant}"
    if variant == "files":
        config.dataset.name = "text_files"
    elif variant in BERT:
        published(config, *BERT[variant])
    elif variant == "smoke":
        config.tokenizer.kind = "byte"
        config.tokenizer.vocab_size = 260
        config.batching.rows = 8
        config.batching.length = 64
        config.model.num_layers = 1
        config.model.d_model = 32
        config.model.d_ff = 64
        config.training.total_steps = 20
        config.checkpoints.every_steps = 10
        config.evaluation.every_steps = 10
    elif variant != "python":
        raise ValueError(f"unknown variant {variant!r}; known: python, files, {', '.join(BERT)}, smoke")
    return config
