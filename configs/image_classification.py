"""Image classification with a Vision Transformer (Dosovitskiy et al. 2021); it judges the digits that models draw.

python experiments/train.py --config=configs/image_classification.py --workdir=runs/mnist-vit
"""

from ml_collections import ConfigDict

from configs import default


def base() -> ConfigDict:
    """A small one on MNIST."""
    config = default.common()
    config.family = "image_classification"

    config.dataset = ConfigDict()
    config.dataset.name = "mnist"
    config.dataset.path = ""

    config.batching = ConfigDict()
    config.batching.rows = 64

    config.model = default.blocks()
    config.model.num_layers = 4
    config.model.patch_size = 4
    config.model.d_model = 96
    config.model.d_ff = 192
    config.model.num_heads = 4
    config.model.norm_placement = "pre"
    config.model.positions = "learned"
    config.model.activation = "gelu"
    config.model.attention_bias = True
    config.model.dropout_rate = 0.1
    config.model.embedding_dropout_rate = 0.0

    config.task = ConfigDict()
    config.task.label_smoothing = 0.05
    config.task.rotation = 15.0
    config.task.scaling = 0.12
    config.task.shear = 0.15
    config.task.shift = 2.0

    config.optimizer.name = "adamw"
    config.optimizer.schedule = "cosine"
    config.optimizer.peak_learning_rate = 2e-3
    config.optimizer.warmup_steps = 200
    config.optimizer.b2 = 0.99
    config.optimizer.epsilon = 1e-8
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0

    config.training.total_steps = 12_000
    config.training.ema_decay = 0.995
    config.checkpoints.every_steps = 1000
    config.checkpoints.keep_latest = 2
    config.evaluation.every_steps = 1000
    config.evaluation.weights = "ema"
    config.evaluation.metric = "accuracy"
    return config


def get_config(variant: str = "mnist") -> ConfigDict:
    """`mnist`, or `smoke`: a few steps, to see that all works."""
    config = base()
    config.name = f"image_classification-{variant}"
    if variant == "smoke":
        config.model.num_layers = 1
        config.model.d_model = 16
        config.model.d_ff = 32
        config.training.total_steps = 20
        config.checkpoints.every_steps = 10
        config.evaluation.every_steps = 10
    elif variant != "mnist":
        raise ValueError(f"unknown variant {variant!r}; known: mnist, smoke")
    return config
