"""A trained discrete VAE as what a run keeps of it: images to tokens and back, like a tokenizer of text."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import numpy as np
from flax import traverse_util

from transformer_jax.config import build
from transformer_jax.data.cache import cache_directory, exclusive
from transformer_jax.data.images import ImageDataset
from transformer_jax.errors import UserError
from transformer_jax.experiment import parse_config
from transformer_jax.families.discrete_vae import model_config
from transformer_jax.models.discrete_vae import DiscreteVae, DiscreteVaeConfig
from transformer_jax.run_directory import RunDirectory, write_json
from transformer_jax.sharding import map_rows
from transformer_jax.training.initialization import read_parameters

RECORD, ARRAYS = "image_tokenizer.json", "image_tokenizer.npz"


@dataclass(frozen=True)
class ImageTokenizerConfig:
    """Which discrete VAE turns images into tokens. A run keeps a copy of its own.

    Attributes:
      run: directory of a run of the family "discrete_vae".
      checkpoint: best, latest, or a step.
    """

    run: str
    checkpoint: str

    def __post_init__(self) -> None:
        if not self.run:
            raise UserError(
                "image_tokenizer.run is empty: train a discrete VAE (configs/discrete_vae.py) on the same images, and "
                "give its run directory."
            )


@dataclass(frozen=True)
class ImageTokenizer:
    """Images uint8[n, P, P, C] to tokens int32[n, G²] in raster order, and back."""

    config: DiscreteVaeConfig
    params: Any

    @property
    def digest(self) -> str:
        """SHA-256 of what decides the tokens of an image."""
        digest = hashlib.sha256(json.dumps(asdict(self.config), sort_keys=True).encode())
        for name, array in sorted(_flat(self.params).items()):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def encode(self, images: np.ndarray) -> np.ndarray:
        return encode_images(DiscreteVae(self.config), self.params, images)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        return decode_images(DiscreteVae(self.config), self.params, tokens)

    def encode_split(self, dataset: ImageDataset, split: str) -> np.ndarray:
        """The tokens of all images of a split, remembered beside the prepared datasets."""
        key = hashlib.sha256(f"{dataset.digest} {split} {self.digest}".encode()).hexdigest()
        path = cache_directory() / "encoded" / f"images-{key}.npy"
        with exclusive(path.name):
            if not path.is_file():
                path.parent.mkdir(exist_ok=True)
                partial = path.with_name(f"{path.name}.{os.getpid()}.partial.npy")
                np.save(partial, self.encode(dataset.splits[split].images))
                os.replace(partial, path)
        return np.load(path)

    def save(self, directory: Path) -> None:
        """Writes ``image_tokenizer.npz`` and ``.json``; data only."""
        directory.mkdir(parents=True, exist_ok=True)
        np.savez(directory / ARRAYS, allow_pickle=False, **_flat(self.params))
        write_json(directory / RECORD, {"config": asdict(self.config), "sha256": self.digest})

    @classmethod
    def load(cls, directory: Path) -> "ImageTokenizer":
        """Reads what `save` wrote. Raises: UserError for a file that is missing or damaged."""
        try:
            record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
            with np.load(directory / ARRAYS) as arrays:
                params = traverse_util.unflatten_dict({tuple(n.split("/")): arrays[n] for n in arrays.files})
        except (OSError, ValueError, BadZipFile) as error:
            raise UserError(f"{directory} has no whole image tokenizer ({error}): restore it from a copy.") from error
        found = cls(build(DiscreteVaeConfig, record["config"], "image_tokenizer"), params)
        if found.digest != record["sha256"]:
            raise UserError(f"{directory / ARRAYS} is damaged (its SHA-256 has changed): restore it from a copy.")
        return found

    @classmethod
    def of_run(cls, config: ImageTokenizerConfig) -> "ImageTokenizer":
        """Raises: UserError when there is no such run or checkpoint, or it is of another family."""
        run = RunDirectory.open(config.run)
        theirs = parse_config(run.config)
        if theirs.family != "discrete_vae":
            raise UserError(f"image_tokenizer.run={config.run} is of the family {theirs.family}; give a discrete_vae.")
        params = read_parameters(run, config.checkpoint, "image_tokenizer.checkpoint")
        return cls(model_config(theirs), params)


def _flat(params: Any) -> dict[str, np.ndarray]:
    return {"/".join(path): np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(params).items()}


def encode_images(model: DiscreteVae, params: Any, images: np.ndarray) -> np.ndarray:
    """Images uint8[n, P, P, C] to tokens int32[n, G²] in raster order."""
    return map_rows(_method(model, "encode"), params, images).reshape(len(images), -1)


def decode_images(model: DiscreteVae, params: Any, tokens: np.ndarray) -> np.ndarray:
    """Tokens int32[n, G²] to images uint8[n, P, P, C]."""
    grid = model.config.grid
    return map_rows(_method(model, "decode"), params, tokens.reshape(-1, grid, grid))


@lru_cache(maxsize=8)
def _method(model: DiscreteVae, method: str) -> Any:
    return jax.jit(lambda params, x: model.apply({"params": params}, x, method=method))
