"""Tatoeba: everyday sentences, German to English, 161,272 training pairs.

    python experiments/train.py --config=configs/tatoeba.py:small --workdir=runs/tatoeba --config.dataset.path=FOLDER

`small` is for a CPU; `gpu`, of 6 + 6 layers, 512 wide, in bfloat16, for one GPU. FOLDER has train, valid and test, each
as NAME.de.gz and NAME.en.gz: line-aligned UTF-8 text. The pairs are those of deu-eng.zip at manythings.org/anki, drawn
from tatoeba.org under CC BY 2.0 FR; name both when you publish. Many a sentence there has several translations: split
so that none of valid or test, in either language, stands in train. English to German is
--config.dataset.source_language=en --config.dataset.target_language=de --config.dataset.train=train.en.gz,train.de.gz,
and so on with the other files.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "small") -> ConfigDict:
    """`small` (7.8 million parameters) or `gpu` (36.7 million)."""
    config = default.get_config()
    config.name = f"tatoeba-{variant}"
    config.dataset.name = "parallel_text"
    config.dataset.source_language = "de"
    config.dataset.target_language = "en"
    config.dataset.train = "train.de.gz,train.en.gz"
    config.dataset.validation = "valid.de.gz,valid.en.gz"
    config.dataset.test = "test.de.gz,test.en.gz"
    config.tokenizer.vocab_size = 10_000
    config.tokenizer.sampling = 0.1
    config.batching.packed_length = 48
    config.batching.num_shapes = 2
    config.model.norm_placement = "pre"
    config.model.attention_bias = True
    config.optimizer.schedule = "warmup_stable_decay"
    config.optimizer.decay_fraction = 0.3
    config.optimizer.clip_norm = 1.0
    config.checkpoints.keep_latest = 2
    config.evaluation.weights = "ema"
    config.evaluation.max_sentences = 0
    config.decoding.beam_size = 5
    config.decoding.length_penalty = 1.0
    if variant == "small":
        config.batching.tokens_per_batch = 4096
        config.model.d_model = 256
        config.model.d_ff = 512
        config.model.num_encoder_layers = 4
        config.model.num_decoder_layers = 4
        config.model.num_heads = 4
        config.model.dtype = "bfloat16_products"
        config.model.dropout_rate = 0.1
        config.optimizer.peak_learning_rate = 3e-3
        config.optimizer.warmup_steps = 1000
        config.training.total_steps = 12_000
        config.training.ema_decay = 0.998
        config.checkpoints.every_steps = 1000
        config.evaluation.every_steps = 2000
    elif variant == "gpu":
        config.batching.tokens_per_batch = 16_384
        config.model.d_ff = 1024
        config.model.dtype = "bfloat16"
        config.model.dropout_rate = 0.3
        config.task.loss_chunk = 16_384
        config.optimizer.peak_learning_rate = 1.5e-3
        config.optimizer.warmup_steps = 800
        config.training.total_steps = 6000
        config.training.ema_decay = 0.995
        config.checkpoints.every_steps = 1000
        config.evaluation.every_steps = 2000
    else:
        raise ValueError(f"unknown variant {variant!r}; known: small, gpu")
    config.model.embedding_dropout_rate = config.model.dropout_rate
    return config
