"""Opened runs of every family with random parameters: nothing is trained, and no directory is there."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.command_line import load_config
from tests.made_files import CHECKOUT, recurrent_config, tiny_config
from tests.made_images import tiny_image_config
from tests.made_text import TINY_MASKED, tiny_masked_config, tiny_text_config
from tests.models.tiny import drawn_like
from transformer_jax.analysis.classification import ClassificationRun
from transformer_jax.analysis.discrete_vae import DiscreteVaeRun
from transformer_jax.analysis.image_classification import ImageClassificationRun
from transformer_jax.analysis.language_model import LanguageModelRun
from transformer_jax.analysis.masked_lm import MaskedRun
from transformer_jax.analysis.text_to_image import TextToImageRun
from transformer_jax.analysis.translation import TranslationRun
from transformer_jax.data.text_tokenizers import CharacterTokenizer
from transformer_jax.data.tokenizers import BYTE_VOCAB_SIZE, EOS, ByteTokenizer, TokenizerPair
from transformer_jax.decoding.images import log_probs
from transformer_jax.experiment import parse_config
from transformer_jax.families.image_tokenizer import ImageTokenizer
from transformer_jax.models.discrete_vae import DiscreteVae, DiscreteVaeConfig

SMALL = {"model__num_heads": 4, "model__norm_placement": "pre", "decoding__max_target_length": 12}


def opened(kind: type, config: Any, seed: int = 0, **values: Any) -> Any:
    """A run of that kind without its directory."""
    run = kind.__new__(kind)
    vars(run).update(config=parse_config(config), **values)
    if "tokenizers" not in values and "tokenizer" not in values:
        pair = TokenizerPair(run.config.tokenizer, ByteTokenizer(), ByteTokenizer())
        vars(run).update(tokenizers=pair)
    shapes = jax.eval_shape(run.model.init, jax.random.key(0), *run.model.example())
    vars(run)["params"] = drawn_like(shapes["params"], seed)
    return run


def translation_run(**changes: Any) -> TranslationRun:
    layers = {"model__num_encoder_layers": 2, "model__num_decoder_layers": 2}
    settings = {**SMALL, **layers, "tokenizer__kind": "byte", "tokenizer__vocab_size": BYTE_VOCAB_SIZE, **changes}
    return opened(TranslationRun, tiny_config(Path("nowhere"), **settings))


def language_model_run(**changes: Any) -> LanguageModelRun:
    settings = {"model__num_heads": 4, "model__num_layers": 2, "decoding__max_tokens": 8, **changes}
    letters = CharacterTokenizer(" abcdefghijklmnopqrstuvwxyz")
    return opened(LanguageModelRun, tiny_text_config(Path("nowhere"), **settings), tokenizer=letters)


def recurrent_run(**changes: Any) -> TranslationRun:
    settings = {"tokenizer__kind": "byte", "tokenizer__vocab_size": BYTE_VOCAB_SIZE, "decoding__max_target_length": 12}
    return opened(TranslationRun, recurrent_config(Path("nowhere"), **settings, **changes))


def without_head(value: Any, name: str) -> Any:
    """Zeros for the second head of [B, H, T, K]."""
    return value.at[:, 1].set(0.0)


def without_features(value: Any, name: str) -> Any:
    """Zeros for half of the features of [B, T, 16]."""
    return value.at[..., :8].set(0.0)


def text_to_image_run(**changes: Any) -> TextToImageRun:
    settings = {"image_tokenizer__run": "nowhere", "model__num_heads": 4, "model__dtype": "float32", **changes}
    sizes = dict(
        image_size=12, channels=3, vocab_size=16, code_width=4, patch_size=4, width=4, halvings=0, num_blocks=1
    )
    vae = DiscreteVae(DiscreteVaeConfig(**sizes))
    shapes = jax.eval_shape(vae.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 12, 12, 3), np.uint8))["params"]
    letters = CharacterTokenizer(" abcdefghijklmnopqrstuvwxyz")
    images = ImageTokenizer(vae.config, drawn_like(shapes))
    config = tiny_image_config("text_to_image", **settings)
    return opened(TextToImageRun, config, tokenizer=letters, image_tokenizer=images)


def masked_run(**changes: Any) -> MaskedRun:
    settings = {"model__num_heads": 4, "model__num_layers": 2, "model__norm_placement": "pre", **changes}
    letters = CharacterTokenizer(" abcdefghijklmnopqrstuvwxyz")
    return opened(MaskedRun, tiny_masked_config(Path("nowhere"), **settings), tokenizer=letters)


def classification_run(level: str) -> ClassificationRun:
    model = {key: value for key, value in TINY_MASKED.items() if key.startswith("model.")}
    layers = {"model.num_heads": 4, "model.num_layers": 2, "model.norm_placement": "pre"}
    settings = {**model, **layers, "model.level": level, "batching.max_length": 32}
    config = load_config(f"{CHECKOUT / 'configs' / 'classification.py'}", [f"{k}={v}" for k, v in settings.items()])
    letters = CharacterTokenizer(" abcdefghijklmnopqrstuvwxyz")
    return opened(ClassificationRun, config, tokenizer=letters, labels=("bad", "fair", "good"))


def image_classification_run() -> ImageClassificationRun:
    settings = {"model__num_heads": 4, "model__num_layers": 2, "model__d_model": 16}
    return opened(ImageClassificationRun, tiny_image_config("image_classification", **settings), tokenizer=None)


def discrete_vae_run() -> DiscreteVaeRun:
    return opened(DiscreteVaeRun, tiny_image_config("discrete_vae"), tokenizer=None)


@dataclass(frozen=True)
class Made:
    """How to test a family.

    Attributes:
      make: an opened run.
      texts: what can be captured, three rows of different lengths.
      prompt: ``prompt(run, line)``, what decoding starts from, int32[1, S].
      log_prob: ``log_prob(run, line, tokens)`` of an output with its end.
      edited, edit: an activation, and what is done to it.
    """

    make: Callable[..., Any]
    texts: tuple[Any, ...]
    prompt: Callable[..., Any]
    log_prob: Callable[..., Any]
    edited: str = "decoder/layer_0/self_attention/heads"
    edit: Callable[..., Any] = without_head


def images(size: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, size, size, channels)).astype(np.uint8)


FAMILIES = {
    "translation": Made(
        translation_run,
        (["one two", "four", "a"], ["eins", "zwei drei", "b"]),
        lambda run, line: run.inputs([line], [""])[0],
        lambda run, line, tokens: run.token_log_probs(run.tokenizer.encode([line]), [tokens])[0].sum(),
    ),
    "language_model": Made(
        language_model_run,
        (["one two", "four", "a"],),
        lambda run, line: np.pad(run.inputs([line])[0], ((0, 0), (0, 1)), constant_values=EOS),
        lambda run, line, tokens: run.token_log_probs(run.tokenizer.encode([line]), [[*tokens, EOS]])[0].sum(),
    ),
    "text_to_image": Made(
        text_to_image_run,
        (["one two", "four", "a"], images(12, 3)),
        lambda run, line: np.pad(run.inputs([line])[0], ((0, 0), (0, 1)), constant_values=EOS),
        lambda run, line, tokens: log_probs(run.model, run.params, run.text([line]), np.array([tokens]))[0],
    ),
}
RECURRENT = {
    f"lstm, {attention}": replace(
        FAMILIES["translation"],
        make=partial(recurrent_run, model__attention=attention),
        edited="decoder/layer_0/output",
        edit=without_features,
    )
    for attention in ("none", "luong", "bahdanau")
}
NETWORKS = FAMILIES | RECURRENT
"""All that can be opened; what is asked of the layers of a Transformer is asked of FAMILIES alone."""
ENCODERS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "masked_lm": (masked_run, (["one two", "four [MASK]", "a"],)),
    "classification, sentence": (partial(classification_run, "sentence"), (["one two", "four", "a"],)),
    "classification, token": (partial(classification_run, "token"), (["one two", "four", "a"],)),
    "image_classification": (image_classification_run, (images(32, 1),)),
}
"""Families with an encoder alone: what makes an opened run, and what can be captured."""
AUTOENCODER: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "discrete_vae": (discrete_vae_run, (images(32, 3),))
}
