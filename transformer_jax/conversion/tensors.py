"""Tensors by name from and to safetensors files, which hold data only: nothing in them is ever executed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from transformer_jax.errors import UserError

Tensors = dict[str, np.ndarray]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")


def read_tensors(folder: Path) -> Tensors:
    """All floating-point tensors of a checkpoint, in one file or sharded, as float32, which holds bf16 and f16 exactly.

    Raises: UserError where there are none, a shard is missing or damaged, or a checkpoint is there only as a pickle.
    """
    if (folder / SINGLE).is_file():
        return _read_file(folder / SINGLE)
    if (folder / INDEX).is_file():
        files = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        tensors: Tensors = {}
        for name in files:
            tensors |= _read_file(folder / Path(name).name)
        return tensors
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.ckpt", "*.h5") for file in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{folder} has {', '.join(pickles)} and no {SINGLE}: such files can run code when they are loaded and are "
            "not read. Where you trust them and have Transformers, write the folder anew: "
            "AutoModel….from_pretrained(FOLDER).save_pretrained(FOLDER)."
        )
    raise UserError(f"{folder} has neither {SINGLE} nor {INDEX}; give the folder of a Hugging Face checkpoint.")


def _read_file(file: Path) -> Tensors:
    try:
        with safe_open(file, framework="np") as opened:
            floats = [name for name in opened.keys() if opened.get_slice(name).get_dtype() in FLOATS]  # noqa: SIM118
            return {name: np.asarray(opened.get_tensor(name), np.float32) for name in floats}
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing, though {INDEX} names it: download the checkpoint again.") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read as safetensors ({error}): download it again.") from error


def write_tensors(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes float32 tensors as Transformers reads them. Raises: UserError where the file cannot be written."""
    try:
        contiguous = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
        save_file(contiguous, file, metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be written: {error}.") from error


def read_json(file: Path) -> dict[str, Any]:
    """An object from a JSON file. Raises: UserError for one that is missing or is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing; give the folder of a whole Hugging Face checkpoint.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error}): download it again.") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no JSON object: download it again.")
    return found
