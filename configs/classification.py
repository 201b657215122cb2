"""Classification of sentences, of pairs of them, or of words, with the encoder of another run or from scratch.

    python experiments/train.py --config=configs/classification.py:sentences,runs/masked --workdir=runs/mine \
        --config.dataset.train=train.tsv --config.dataset.validation=valid.tsv      # a line: LABEL, TAB, TEXT
    python experiments/train.py --config=configs/classification.py:words,runs/masked --workdir=runs/entities \
        --config.dataset.train=train.conll --config.dataset.validation=valid.conll
    python experiments/train.py --config=configs/classification.py:reviews --workdir=runs/reviews \
        --config.dataset.path=FOLDER                                                # movie reviews, from scratch

After a comma stands the run whose encoder and tokenizer are taken, with all of its model that they need: one of
configs/masked_lm.py, of this file, or of a translation. Without one, all is trained on the examples.
"""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import default

VARIANTS = ("sentences", "words", "reviews", "smoke")
SAME_NAMES = ("embedding/*", "positions/*", "types/*", "embedding_norm/*", "encoder/*", "pooler/*")


def base() -> ConfigDict:
    """A small encoder that is fine-tuned in minutes."""
    config = default.common()
    config.family = "classification"

    config.dataset = ConfigDict()
    config.dataset.name = "labelled_files"
    config.dataset.path = ""
    config.dataset.train = ""
    config.dataset.validation = ""
    config.dataset.test = ""
    config.dataset.texts = ("text",)
    config.dataset.label = "label"
    config.dataset.share = 1.0

    config.tokenizer = ConfigDict()
    config.tokenizer.kind = "bpe"
    config.tokenizer.vocab_size = 4096 - 1
    config.tokenizer.character_coverage = 0.9995

    config.batching = ConfigDict()
    config.batching.tokens_per_batch = 2048
    config.batching.num_shapes = 3
    config.batching.max_length = 128
    config.batching.rows_multiple = 8

    config.model = default.encoder()
    config.model.num_layers = 4
    config.model.d_model = 256
    config.model.d_ff = 1024
    config.model.num_heads = 4
    config.model.max_length = 512
    config.model.level = "sentence"
    config.model.pooling = "first"

    config.task = ConfigDict()
    config.task.label_smoothing = 0.0

    config.optimizer.name = "adamw"
    config.optimizer.schedule = "linear"
    config.optimizer.peak_learning_rate = 2e-4
    config.optimizer.warmup_steps = 100
    config.optimizer.b2 = 0.98
    config.optimizer.epsilon = 1e-6
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0

    config.training.total_steps = 1000
    config.checkpoints.every_steps = 100
    config.checkpoints.keep_latest = 1
    config.evaluation.every_steps = 100
    config.evaluation.metric = "accuracy"
    return config


def start_from(config: ConfigDict, path: str) -> None:
    """Takes tokenizer and encoder of a run, and all of its model that makes them what they are."""
    file = Path(path) / "config.json"
    if not file.is_file():
        raise ValueError(f"{path} is no run: it has no config.json; known besides runs: {', '.join(VARIANTS)}")
    there: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if there["family"] not in ("masked_lm", "classification", "translation"):
        raise ValueError(f"{path} is of the family {there['family']}, which has no encoder to start from")
    model: dict[str, Any] = there["model"]
    config.initialize.run = path
    config.initialize.parameters = SAME_NAMES
    config.tokenizer = ConfigDict(there["tokenizer"])
    if there["family"] == "translation" and model["architecture"] != "transformer":
        raise ValueError(f"{path} is a translation of LSTMs; what starts from a run is an encoder of a Transformer")
    if there["family"] == "translation":
        table = "shared" if model["tie_embeddings"] in ("source_target", "all") else "source"
        config.initialize.parameters = (
            "encoder/*", f"embedding/*={table}_embedding/*", "positions/*=source_positions/*"
        )  # fmt: skip
        config.model.num_layers = model["num_encoder_layers"]
        config.model.update(num_types=0, embedding_norm=False, scale_embeddings=True, pooling="mean")
    for key, value in model.items():
        if key in config.model and key not in ("level", "pooling"):
            config.model[key] = value
    config.batching.max_length = min(config.batching.max_length, config.model.max_length)


def get_config(argument: str = "sentences") -> ConfigDict:
    """`sentences`, `words`, `reviews`, or `smoke`: a few steps of reviews; then a comma and a run to start from."""
    variant, _, run = argument.partition(",")
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    config = base()
    config.name = f"classification-{variant}"
    if run:
        start_from(config, run)
    if variant == "words":
        config.dataset.name = "column_files"
        config.model.update(level="token", pooler=False)
        config.evaluation.metric = "entity_f1"
    elif variant in ("reviews", "smoke"):
        config.dataset.name = "movie_reviews"
    if variant == "smoke":
        config.tokenizer.update(kind="byte", vocab_size=260)
        config.model.update(num_layers=1, d_model=32, d_ff=64)
        config.training.total_steps = 20
        config.checkpoints.every_steps = 10
        config.evaluation.every_steps = 10
    return config
