"""Text to image: config sections, the model for two vocabularies, and the evaluator, which looks at images."""

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh

from transformer_jax.config import build
from transformer_jax.data.captions import caption_rows
from transformer_jax.data.images import (
    ArrayBatches,
    ImageDataset,
    ImageDatasetConfig,
    RowsConfig,
    array_batches,
    describe_images,
    load_images,
)
from transformer_jax.data.text_tokenizers import (
    TextTokenizer,
    TextTokenizerConfig,
    load_text_tokenizer,
    save_text_tokenizer,
    tokenizer_digest,
    train_text_tokenizer,
)
from transformer_jax.decoding.images import ImageDecodingConfig, ImageGenerator
from transformer_jax.errors import UserError
from transformer_jax.experiment import EvaluationConfig, RunConfig
from transformer_jax.families.family import Experiment, Family
from transformer_jax.families.image_judges import make_judge
from transformer_jax.families.image_tokenizer import RECORD, ImageTokenizer, ImageTokenizerConfig
from transformer_jax.models.discrete_vae import DiscreteVaeConfig
from transformer_jax.models.text_to_image import TextToImage, TextToImageConfig
from transformer_jax.run_directory import RunDirectory
from transformer_jax.training.evaluators import split_sums
from transformer_jax.training.step import make_evaluation_step
from transformer_jax.training.text_to_image import TextToImageTask, TextToImageTaskConfig

GIVEN = ("text_vocab_size", "image_vocab_size", "grid")


@dataclass(frozen=True)
class TextToImageEvaluationConfig(EvaluationConfig):
    """Of the validation split, and of images generated for its captions.

    Attributes:
      images: how many are generated; 0: none.
      classifier: a run of the family "image_classification" that judges digits; "" for none.
    """

    metric: Literal["loss", "image_nll", "perplexity", "attributes", "scenes", "accuracy"]
    images: int
    classifier: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images < 0:
            raise UserError(f"evaluation.images is {self.images}; it must be at least 0.")


@dataclass(frozen=True)
class TextToImageRunConfig(RunConfig):
    """``model`` holds TextToImageConfig without `GIVEN`, which the tokenizers of text and images give."""

    dataset: ImageDatasetConfig
    image_tokenizer: ImageTokenizerConfig
    tokenizer: TextTokenizerConfig
    batching: RowsConfig
    model: dict[str, Any]
    task: TextToImageTaskConfig
    evaluation: TextToImageEvaluationConfig
    decoding: ImageDecodingConfig

    @property
    def rows(self) -> tuple[str, int]:
        return "batching.rows", self.batching.rows

    def check(self) -> None:
        for name in GIVEN:
            if name in self.model:
                raise UserError(f"model.{name} is set by the tokenizers; remove it.")
        complete_model(self, 1, 1, 1)
        evaluation, shapes = self.evaluation, self.dataset.name == "captioned_shapes"
        if evaluation.classifier and shapes:
            raise UserError("evaluation.classifier judges digits; with captioned_shapes leave it empty.")
        judged = ("attributes", "scenes") if shapes else ("accuracy",) if evaluation.classifier else ()
        if evaluation.metric in ("attributes", "scenes", "accuracy") and (
            evaluation.metric not in judged or not evaluation.images
        ):
            raise UserError(
                f"evaluation.metric={evaluation.metric!r} is not measured: it needs evaluation.images, and "
                "captioned_shapes for 'attributes' and 'scenes', mnist and evaluation.classifier for 'accuracy'."
            )
        if self.task.caption_dropout == 0 and (self.decoding.guidance != 1 or self.decoding.rerank == "caption"):
            raise UserError(
                "decoding.guidance and decoding.rerank='caption' need a model that has seen images without captions: "
                "set task.caption_dropout, for example to 0.1."
            )


def model_config(config: TextToImageRunConfig, text_vocab_size: int, images: DiscreteVaeConfig) -> TextToImageConfig:
    """The model's hyperparameters, complete."""
    return complete_model(config, text_vocab_size, images.vocab_size, images.grid)


def complete_model(config: TextToImageRunConfig, text_vocab_size: int, codes: int, grid: int) -> TextToImageConfig:
    """As `model_config`, for a grid x grid of so many codes."""
    sizes = dict(zip(GIVEN, (text_vocab_size, codes, grid), strict=True))
    return build(TextToImageConfig, {**config.model, **sizes}, "model")


def token_rows(
    dataset: ImageDataset, split: str, tokenizer: TextTokenizer, images: ImageTokenizer, model: TextToImageConfig
) -> np.ndarray:
    """int32[n, S + N]: caption and image tokens of each example of a split."""
    text = caption_rows(dataset.splits[split].captions, tokenizer, model.text_length)
    return np.concatenate([text, model.first_code + images.encode_split(dataset, split)], axis=1)


class TextToImageEvaluator:
    """Losses of the validation split, and what images show that are generated for its captions."""

    def __init__(
        self, config: TextToImageRunConfig, task: TextToImageTask, mesh: Mesh, images: ImageTokenizer,
        tokens: np.ndarray, captions: list[str],
    ) -> None:  # fmt: skip
        self._task, self._mesh, self._images = task, mesh, images
        self._batches = array_batches({"tokens": tokens}, config.batching.rows)
        self._evaluate = make_evaluation_step(task, mesh)
        self._judge = make_judge(config.dataset, config.evaluation.classifier) if config.evaluation.images else None
        self._captions = captions[: config.evaluation.images]
        self._text = tokens[: config.evaluation.images, : task.model.config.text_length]
        self._first_code = task.model.config.first_code
        # One image a caption, as it comes: how well the model draws, not how well it chooses.
        decoding = dataclasses.replace(config.decoding, n_best=1, candidates=1, rerank="none")
        self._generator = ImageGenerator(task.model, decoding, mesh)

    def __call__(self, params: Any) -> Iterator[tuple[str, float]]:
        begin = time.monotonic()
        yield from self._task.summarise(split_sums(self._evaluate, params, self._batches, self._mesh)).items()
        if self._judge is not None:
            found = self._generator.generate(params, self._text)
            tokens = np.array([best[0].tokens for best in found], np.int32)
            yield from self._judge(self._images.decode(tokens - self._first_code), self._captions).items()
        yield "evaluation_seconds", time.monotonic() - begin


def prepare(config: TextToImageRunConfig, run: RunDirectory | None) -> Experiment:
    """Reads the images, takes the run's tokenizers or makes them, and turns captions and images into tokens."""
    kept = run.tokenizer if run is not None and (run.tokenizer / RECORD).is_file() else None  # which is written last
    # May refuse: before the images are prepared, which takes minutes.
    images = ImageTokenizer.load(kept) if kept else ImageTokenizer.of_run(config.image_tokenizer)
    dataset = load_images(config.dataset)
    if images.config.channels != config.dataset.channels:
        raise UserError(
            f"image_tokenizer.run={config.image_tokenizer.run} is of images with {images.config.channels} channels, "
            f"those of {config.dataset.name} have {config.dataset.channels}; give one trained on {config.dataset.name}."
        )
    if kept:
        tokenizer = load_text_tokenizer(kept)
    else:
        tokenizer = train_text_tokenizer(dataset.captions(), config.tokenizer)
        if run is not None:
            save_text_tokenizer(tokenizer, run.tokenizer)
            images.save(run.tokenizer)
    if run is not None:
        run.pin("data", dataset.digest)
        run.pin("tokenizers", tokenizer_digest(tokenizer) + images.digest)
    task = TextToImageTask(TextToImage(model_config(config, tokenizer.vocab_size, images.config)), config.task)
    rows = lambda split: token_rows(dataset, split, tokenizer, images, task.model.config)
    train = rows("train")
    used = len(np.unique(train[:, task.model.config.text_length :]))
    report = f"{describe_images(dataset)}\nimage codes    {used:,} of {images.config.vocab_size:,} used"

    def make_evaluator(mesh: Mesh) -> TextToImageEvaluator:
        captions = dataset.splits["validation"].captions
        return TextToImageEvaluator(config, task, mesh, images, rows("validation"), captions)

    batches = ArrayBatches({"tokens": train}, config.batching.rows, config.seed, "tokens", report)
    return Experiment(task, batches, make_evaluator)


TEXT_TO_IMAGE = Family(
    config=TextToImageRunConfig,
    prepare=prepare,
    commands=("experiments/evaluate.py", "experiments/generate.py"),
)
