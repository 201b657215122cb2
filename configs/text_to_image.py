"""Text to image as in DALL-E (Ramesh et al. 2021): a Transformer over captions and the tokens of a discrete VAE.

    python experiments/train.py --config=configs/discrete_vae.py:shapes --workdir=runs/shapes-vae
    python experiments/train.py --config=configs/text_to_image.py:shapes --workdir=runs/shapes \
        --config.image_tokenizer.run=runs/shapes-vae
    python experiments/generate.py runs/shapes --text="a small red circle left of a large blue square"
"""

from ml_collections import ConfigDict

from configs import default


def base() -> ConfigDict:
    """A small model of 8 x 8 image tokens."""
    config = default.common()
    config.family = "text_to_image"

    config.dataset = ConfigDict()
    config.dataset.name = "captioned_shapes"
    config.dataset.path = ""

    config.image_tokenizer = ConfigDict()
    config.image_tokenizer.run = "runs/shapes-vae"
    config.image_tokenizer.checkpoint = "best"

    config.tokenizer = ConfigDict()
    config.tokenizer.kind = "bpe"
    config.tokenizer.vocab_size = 384
    config.tokenizer.character_coverage = 1.0

    config.batching = ConfigDict()
    config.batching.rows = 64

    config.model = default.blocks()
    del config.model.max_length  # which text and image make up
    config.model.num_layers = 6
    config.model.text_length = 12
    config.model.image_attention = "sparse"
    config.model.kernel = 5
    config.model.d_model = 128
    config.model.d_ff = 512
    config.model.num_heads = 4
    config.model.norm_placement = "pre"
    config.model.positions = "learned"
    config.model.activation = "gelu"
    config.model.attention_bias = True
    config.model.dropout_rate = 0.0
    config.model.embedding_dropout_rate = 0.0
    config.model.dtype = "bfloat16_products"

    config.task = ConfigDict()
    config.task.text_weight = 1 / 8
    config.task.caption_dropout = 0.1
    config.task.label_smoothing = 0.0
    config.task.loss_chunk = 1024

    config.optimizer.name = "adamw"
    config.optimizer.schedule = "cosine"
    config.optimizer.peak_learning_rate = 2e-3
    config.optimizer.warmup_steps = 200
    config.optimizer.b2 = 0.95
    config.optimizer.epsilon = 1e-8
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0

    config.training.total_steps = 5000
    config.training.ema_decay = 0.995
    config.checkpoints.every_steps = 1000
    config.checkpoints.keep_latest = 2
    config.evaluation.every_steps = 1000
    config.evaluation.weights = "ema"
    config.evaluation.metric = "attributes"
    config.evaluation.images = 128
    config.evaluation.classifier = ""

    config.decoding = ConfigDict()
    config.decoding.method = "sample"
    config.decoding.beam_size = 4
    config.decoding.n_best = 1
    config.decoding.candidates = 1
    config.decoding.guidance = 1.5
    config.decoding.rerank = "none"
    config.decoding.batch_size = 64
    config.decoding.seed = 0
    config.decoding.sampling = ConfigDict()
    config.decoding.sampling.temperature = 1.0
    config.decoding.sampling.top_k = 0
    config.decoding.sampling.top_p = 0.95
    config.decoding.sampling.min_p = 0.0
    return config


def get_config(variant: str = "shapes") -> ConfigDict:
    """`shapes`, `mnist`, or `smoke`: a few steps, to see that all works."""
    config = base()
    config.name = f"text_to_image-{variant}"
    if variant == "mnist":
        config.dataset.name = "mnist"
        config.image_tokenizer.run = "runs/mnist-vae"
        config.evaluation.classifier = "runs/mnist-vit"
        config.evaluation.metric = "accuracy"
        config.training.total_steps = 3000
        config.decoding.guidance = 2.0
    elif variant == "smoke":
        config.model.num_layers = 2
        config.model.d_model = 16
        config.model.d_ff = 32
        config.training.total_steps = 20
        config.checkpoints.every_steps = 10
        config.evaluation.every_steps = 10
        config.evaluation.images = 8
    elif variant != "shapes":
        raise ValueError(f"unknown variant {variant!r}; known: shapes, mnist, smoke")
    return config
