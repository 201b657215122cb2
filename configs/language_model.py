"""Decoder-only language models on any text.

    python experiments/train.py --config=configs/language_model.py --workdir=runs/python
    python experiments/train.py --config=configs/language_model.py:shakespeare --workdir=runs/shakespeare
    python experiments/train.py --config=configs/language_model.py:files --workdir=runs/mine \
        --config.dataset.path=FOLDER --config.dataset.train='*.txt' --config.dataset.validation=held_out.txt
    python experiments/train.py --config=configs/language_model.py:lm1b --workdir=runs/lm1b

`gpt2`, `gpt2-medium`, `gpt2-large`, `gpt2-xl` (Radford et al. 2019) and `gpt3-small` … `gpt3-175b` (Brown et al. 2020,
Table 2.1) are the published sizes; `experiments/sizes.py` says what they need.
"""

from ml_collections import ConfigDict

from configs import default

VOCABULARY = 50304  # GPT-2's 50,257, rounded up to a multiple of 128, so that a mesh divides it
GPT2 = {  # layers, width, heads; parameters as published (the paper's own counts were corrected by its authors)
    "gpt2": (12, 768, 12),
    "gpt2-medium": (24, 1024, 16),
    "gpt2-large": (36, 1280, 20),
    "gpt2-xl": (48, 1600, 25),
}
GPT3 = {  # layers, width, heads, tokens a batch, learning rate
    "gpt3-small": (12, 768, 12, 2**19, 6.0e-4),
    "gpt3-medium": (24, 1024, 16, 2**19, 3.0e-4),
    "gpt3-large": (24, 1536, 16, 2**19, 2.5e-4),
    "gpt3-xl": (24, 2048, 16, 2**20, 2.0e-4),  # the table's 24 heads of 128 are not 2048 wide; 16 are
    "gpt3-2.7b": (32, 2560, 32, 2**20, 1.6e-4),
    "gpt3-6.7b": (32, 4096, 32, 2**21, 1.2e-4),
    "gpt3-13b": (40, 5120, 40, 2**21, 1.0e-4),  # the table's width of 5140 is not 40 heads of 128; 5120 is
    "gpt3-175b": (96, 12288, 96, 3_276_800, 0.6e-4),
}


def base() -> ConfigDict:
    """A pre-norm Transformer as GPT-2's, on text of the installed Python."""
    config = default.common()
    config.family = "language_model"

    config.dataset = default.text()
    config.tokenizer = ConfigDict()
    config.tokenizer.kind = "bpe"
    config.tokenizer.vocab_size = 2048
    config.tokenizer.character_coverage = 0.9995

    config.batching = ConfigDict()
    config.batching.rows = 16
    config.batching.length = 256

    config.model = default.blocks()
    config.model.num_layers = 4
    config.model.d_model = 256
    config.model.d_ff = 1024
    config.model.num_heads = 8
    config.model.norm_placement = "pre"
    config.model.norm_epsilon = 1e-5
    config.model.positions = "learned"
    config.model.activation = "gelu"
    config.model.attention_bias = True
    config.model.dropout_rate = 0.0
    config.model.embedding_dropout_rate = 0.0
    config.model.tie_embeddings = True
    config.model.scale_embeddings = False
    config.model.initializer = "gpt2"
    config.model.end_begins = False

    config.task = ConfigDict()
    config.task.label_smoothing = 0.0
    config.task.loss_chunk = 1024

    config.optimizer.name = "adamw"
    config.optimizer.schedule = "cosine"
    config.optimizer.peak_learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.b2 = 0.95
    config.optimizer.epsilon = 1e-8
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 1.0

    config.training.total_steps = 1500
    config.checkpoints.every_steps = 250
    config.checkpoints.keep_latest = 2
    config.evaluation.every_steps = 250
    config.evaluation.stride = 256

    config.decoding = ConfigDict()
    config.decoding.method = "sample"
    config.decoding.beam_size = 4
    config.decoding.n_best = 1
    config.decoding.length_penalty = 0.0
    config.decoding.patience = 1.0
    config.decoding.max_tokens = 128
    config.decoding.min_length = 1
    config.decoding.prompt_begins = "document"
    config.decoding.batch_size = 16
    config.decoding.seed = 0
    config.decoding.sampling = ConfigDict()
    config.decoding.sampling.temperature = 0.8
    config.decoding.sampling.top_k = 0
    config.decoding.sampling.top_p = 0.95
    config.decoding.sampling.min_p = 0.0
    return config


def shakespeare(config: ConfigDict) -> None:
    """Characters of Shakespeare with the sizes and budget of nanoGPT's CPU settings: 4 layers of 128, 2,000 steps."""
    config.dataset.name = "tiny_shakespeare"
    config.tokenizer.kind = "character"
    config.tokenizer.vocab_size = 256
    config.batching.rows = 12
    config.batching.length = 64
    config.model.d_model = 128
    config.model.d_ff = 512
    config.model.num_heads = 4
    config.model.max_length = 64
    config.model.attention_bias = False
    config.model.feed_forward_bias = False
    config.optimizer.peak_learning_rate = 4e-3
    config.optimizer.b2 = 0.99
    config.training.total_steps = 2000
    config.evaluation.stride = 64
    config.decoding.max_tokens = 48
    config.decoding.prompt_begins = "anywhere"


def shakespeare_gpu(config: ConfigDict) -> None:
    """The same with nanoGPT's GPU settings: 6 layers of 384, contexts of 256, 5,000 steps; it overfits by then."""
    shakespeare(config)
    config.batching.rows = 64
    config.batching.length = 256
    config.model.num_layers = 6
    config.model.d_model = 384
    config.model.d_ff = 1536
    config.model.num_heads = 6
    config.model.max_length = 256
    config.model.dropout_rate = 0.2
    config.model.embedding_dropout_rate = 0.2
    config.model.attention_dropout_rate = 0.2
    config.model.dtype = "bfloat16"
    config.task.loss_chunk = 16_384
    config.optimizer.peak_learning_rate = 1e-3
    config.training.total_steps = 5000
    config.evaluation.stride = 256
    config.decoding.max_tokens = 192


def published(config: ConfigDict, layers: int, width: int, heads: int, length: int) -> None:
    """A published size, with what training at such sizes needs."""
    config.tokenizer.vocab_size = VOCABULARY
    config.model.num_layers = layers
    config.model.d_model = width
    config.model.d_ff = 4 * width
    config.model.num_heads = heads
    config.model.max_length = length
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.model.scan_layers = True
    config.task.loss_chunk = 4096
    config.batching.length = length
    config.evaluation.stride = length
    config.decoding.max_tokens = length // 2
    config.training.total_steps = 100_000
    config.checkpoints.every_steps = 1000
    config.evaluation.every_steps = 1000


def get_config(variant: str = "python") -> ConfigDict:
    """`python`, `shakespeare`, `shakespeare-gpu`, `files`, `lm1b`, a published size, or `smoke`: a few steps."""
    config = base()
    config.name = f"language_model-{variant}"
    if variant == "shakespeare":
        shakespeare(config)
    elif variant == "shakespeare-gpu":
        shakespeare_gpu(config)
    elif variant == "files":
        config.dataset.name = "text_files"
    elif variant == "lm1b":
        published(config, 6, 512, 8, 256)
        config.dataset.name = "lm1b"
        config.dataset.train = "train"
        config.dataset.validation = "test[:5%]"
        config.dataset.test = "test[5%:]"
        config.tokenizer.vocab_size = 32_000
        config.batching.rows = 256
    elif variant in GPT2:
        published(config, *GPT2[variant], 1024)
        config.batching.rows = 512
        config.optimizer.peak_learning_rate = 6e-4
        config.optimizer.warmup_steps = 2000
    elif variant in GPT3:
        layers, width, heads, tokens, rate = GPT3[variant]
        published(config, layers, width, heads, 2048)
        config.batching.rows = tokens // 2048
        config.optimizer.peak_learning_rate = rate
        config.optimizer.warmup_steps = 375_000_000 // tokens  # Appendix B: over the first 375 million tokens
        config.training.total_steps = 300_000_000_000 // tokens
    elif variant == "smoke":
        config.tokenizer.kind = "byte"
        config.tokenizer.vocab_size = 260
        config.batching.length = 64
        config.batching.rows = 8
        config.model.num_layers = 1
        config.model.d_model = 32
        config.model.d_ff = 64
        config.evaluation.stride = 64
        config.training.total_steps = 20
        config.checkpoints.every_steps = 10
        config.evaluation.every_steps = 10
    elif variant != "python":
        known = ["python", "shakespeare", "shakespeare-gpu", "files", "lm1b", *GPT2, *GPT3, "smoke"]
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(known)}")
    return config
