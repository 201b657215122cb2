"""A text-to-image run, opened for use: its model, tokenizers, images and scores."""

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np

from transformer_jax.analysis.capture import Inputs
from transformer_jax.analysis.run import Run, decoding_mesh, listed
from transformer_jax.analysis.scores import begin_record, finish_record, format_scores
from transformer_jax.data.captions import caption_rows
from transformer_jax.data.images import array_batches, load_images
from transformer_jax.data.text_tokenizers import TextTokenizer, load_text_tokenizer
from transformer_jax.decoding.batching import Hypothesis
from transformer_jax.decoding.images import ImageDecodingConfig, ImageGenerator, log_probs
from transformer_jax.errors import UserError
from transformer_jax.families.image_judges import make_judge
from transformer_jax.families.image_tokenizer import ImageTokenizer
from transformer_jax.families.text_to_image import TextToImageRunConfig, model_config, token_rows
from transformer_jax.models.text_to_image import TextToImage
from transformer_jax.models.tokens import BOS_ID
from transformer_jax.models.transformer import plain
from transformer_jax.training.evaluators import sums_on_all_devices
from transformer_jax.training.text_to_image import TextToImageTask


class TextToImageRun(Run):
    """What `load_run` gives for the family "text_to_image"."""

    config: TextToImageRunConfig

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        return load_text_tokenizer(self.directory.tokenizer)

    @cached_property
    def image_tokenizer(self) -> ImageTokenizer:
        return ImageTokenizer.load(self.directory.tokenizer)

    @cached_property
    def model(self) -> TextToImage:
        """The unrolled model, whichever way it was trained; `params` fits it."""
        config = model_config(self.config, self.tokenizer.vocab_size, self.image_tokenizer.config)
        return TextToImage(plain(config))

    def generator(self, **overrides: Any) -> ImageGenerator:
        """With the run's decoding settings, changed by keyword: ``guidance=2.0``, ``candidates=8`` …

        With n_best alone there are as many candidates.
        """
        fields = {field.name for field in dataclasses.fields(ImageDecodingConfig)}
        if unknown := sorted(set(overrides) - fields):
            raise UserError(f"decoding has no setting {unknown[0]!r}; known: {sorted(fields)}.")
        if "n_best" in overrides and "candidates" not in overrides:
            overrides["candidates"] = max(overrides["n_best"], self.config.decoding.candidates)
        config = dataclasses.replace(self.config.decoding, **overrides)
        uncaptioned = config.guidance != 1 or config.rerank == "caption"
        if uncaptioned and not self.config.task.caption_dropout:
            raise UserError(
                "guidance and rerank='caption' need a model that has seen images without captions; this one was "
                "trained with task.caption_dropout=0."
            )
        return ImageGenerator(self.model, config, decoding_mesh())

    def text(self, captions: Sequence[str]) -> np.ndarray:
        """int32[n, S]: captions as the model reads them. Raises: UserError for one that is too long or unreadable."""
        return caption_rows(listed(captions), self.tokenizer, self.model.config.text_length)

    def generate(self, captions: Sequence[str], **overrides: Any) -> np.ndarray:
        """Images uint8[n, n_best, P, P, C] of captions, the best first; settings as for `generator`."""
        return self.generate_scored(captions, **overrides)[0]

    def generate_scored(self, captions: Sequence[str], **overrides: Any) -> tuple[np.ndarray, np.ndarray]:
        """As `generate`, and float64[n, n_best], what they were ordered by."""
        found = self.search(captions, **overrides)
        images = self.decode_images([hypothesis.tokens for best in found for hypothesis in best])
        scores = np.array([[hypothesis.score for hypothesis in best] for best in found])
        return images.reshape(*scores.shape, *images.shape[1:]), scores

    def decode_images(self, outputs: Sequence[list[int]]) -> np.ndarray:
        """Images uint8[n, P, P, C] of N tokens each, as `search` gives them."""
        return self.image_tokenizer.decode(np.array(outputs, np.int32) - self.model.config.first_code)

    def score(self, captions: Sequence[str], images: np.ndarray) -> np.ndarray:
        """Natural log-probability float32[n] of each image uint8[n, P, P, C], as tokens, given its caption."""
        return log_probs(self.model, self.params, self.text(captions), self._codes(images))

    def _codes(self, images: np.ndarray) -> np.ndarray:
        return self.model.config.first_code + self.image_tokenizer.encode(np.asarray(images))

    def inputs(self, *texts: Any) -> Inputs:
        """Captions, or captions and their images uint8[n, P, P, C]: start, text, and image tokens as one row each."""
        captions, *images = texts
        rows = np.pad(self.text(captions), ((0, 0), (1, 0)), constant_values=BOS_ID)
        return (np.concatenate([rows, *map(self._codes, images)], axis=1),)

    def pieces(self, inputs: Inputs, row: int = 0) -> list[list[str]]:
        return [self.token_names(inputs[0][row].tolist())]

    def token_names(self, tokens: Sequence[int]) -> list[str]:
        """Pieces of text, "<pad>", and the numbers of image codes."""
        c = self.model.config
        name = lambda token: self.tokenizer.pieces([token])[0] if token < c.text_vocab_size else "<pad>"
        return [name(token) if token < c.first_code else f"#{token - c.first_code}" for token in tokens]

    def predicted(self, inputs: Inputs) -> np.ndarray:
        return np.pad(inputs[0][:, 1:], ((0, 0), (0, 1)))

    def sides(self, name: str) -> tuple[int | None, int | None]:
        return 0, 0 if name.endswith("/weights") else None

    def search(self, lines: Sequence[str], **overrides: Any) -> list[list[Hypothesis]]:
        return self.generator(**overrides).generate(self.params, self.text(lines))

    def hypothesis_inputs(self, line: str, outputs: Sequence[list[int]]) -> Inputs:
        (rows,) = self.inputs([line] * len(outputs))
        return (np.concatenate([rows, np.array(outputs, np.int32)], axis=1),)

    def decode(self, outputs: Sequence[list[int]]) -> list[str]:
        """Images have no text: the numbers of their codes; `decode_images` gives the images."""
        return [" ".join(self.token_names(output)) for output in outputs]

    def evaluate(self, split: str, files: str | None, **settings: Any) -> tuple[dict[str, Any], str]:
        """As `Run.evaluate`: losses, and what the images show that are generated for each caption of the split.

        The images are kept in ``images/NAME.npz``. Settings are those of `generator`.
        """
        if files is not None:
            raise UserError("--files does not concern text to image; --split does.")
        config, dataset = self.config, load_images(self.config.dataset)
        captions = dataset.split(split).captions
        generator = self.generator(**settings)
        data = {"split": split, "dataset": dataset.name, "images": len(captions), "sha256": dataset.digest}
        name, record = begin_record(self, data, {"decoding": asdict(generator.config)})
        task = TextToImageTask(self.model, config.task)
        tokens = token_rows(dataset, split, self.tokenizer, self.image_tokenizer, self.model.config)
        batches = array_batches({"tokens": tokens}, config.batching.rows)
        scores = task.summarise(sums_on_all_devices(task, self.params, batches))
        judge = make_judge(config.dataset, config.evaluation.classifier)
        if judge is not None:
            images = self.generate(captions, **settings)
            scores |= judge(images.reshape(-1, *images.shape[2:]), np.repeat(captions, images.shape[1]).tolist())
            file = self.directory.inside(f"images/{name}.npz")
            file.parent.mkdir(exist_ok=True)
            np.savez_compressed(file, images=images, captions=np.array(captions))
            record["images"] = f"images/{name}.npz"
        record = finish_record(self, name, {**record, "scores": scores})
        drawn = "no images: set evaluation.classifier" if judge is None else f"{generator.config.n_best} image(s) each"
        return record, format_scores(record, f"{len(captions):,} captions, {drawn}")
