"""Discrete VAEs, which turn images into tokens: the first stage of text to image.

python experiments/train.py --config=configs/discrete_vae.py:shapes --workdir=runs/shapes-vae
python experiments/train.py --config=configs/discrete_vae.py:mnist --workdir=runs/mnist-vae
"""

from ml_collections import ConfigDict

from configs import default


def base() -> ConfigDict:
    """32 x 32 pixels to 8 x 8 tokens, as in Ramesh et al. 2021 but for sizes."""
    config = default.common()
    config.family = "discrete_vae"

    config.dataset = ConfigDict()
    config.dataset.name = "captioned_shapes"
    config.dataset.path = ""

    config.batching = ConfigDict()
    config.batching.rows = 64

    config.model = ConfigDict()
    config.model.vocab_size = 512
    config.model.code_width = 16
    config.model.patch_size = 4
    config.model.width = 128
    config.model.halvings = 0
    config.model.num_blocks = 2

    config.task = ConfigDict()
    config.task.first_temperature = 1.0
    config.task.last_temperature = 0.1
    config.task.temperature_steps = 6000
    config.task.first_kl_weight = 0.0
    config.task.last_kl_weight = 0.0
    config.task.kl_steps = 1

    config.optimizer.name = "adamw"
    config.optimizer.schedule = "cosine"
    config.optimizer.peak_learning_rate = 4e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.b2 = 0.99
    config.optimizer.epsilon = 1e-8
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 1.0

    config.training.total_steps = 8000
    config.checkpoints.every_steps = 1000
    config.checkpoints.keep_latest = 2
    config.evaluation.every_steps = 1000
    config.evaluation.metric = "loss"
    return config


def get_config(variant: str = "shapes") -> ConfigDict:
    """`shapes`, `mnist`, or `smoke`: a few steps, to see that all works."""
    config = base()
    config.name = f"discrete_vae-{variant}"
    if variant == "mnist":
        config.dataset.name = "mnist"
        config.model.vocab_size = 256
        config.training.total_steps = 4000
        config.task.temperature_steps = 3000
    elif variant == "smoke":
        config.model.vocab_size = 16
        config.model.width = 8
        config.training.total_steps = 20
        config.checkpoints.every_steps = 10
        config.evaluation.every_steps = 10
    elif variant != "shapes":
        raise ValueError(f"unknown variant {variant!r}; known: shapes, mnist, smoke")
    return config
