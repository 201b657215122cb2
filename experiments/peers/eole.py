"""Eole (OpenNMT), trained for as long as this project took, on the same pieces, with a schedule that fits the time."""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.peers import exports
from experiments.peers.environments import interpreter, run
from transformer_jax.analysis.run import require_family
from transformer_jax.data.datasets import load_dataset
from transformer_jax.data.tokenizers import train_tokenizers
from transformer_jax.errors import UserError
from transformer_jax.evaluation.bleu import translation_scores
from transformer_jax.experiment import parse_config
from transformer_jax.families.translation import TranslationConfig, model_config
from transformer_jax.run_directory import write_json, write_text

PROBES = 40, 140
"""Steps of two short trainings, from which the time of a step and of starting are known."""
Result = dict[str, Any]


def check_eole(mapping: Any) -> None:
    """Raises: UserError for another family, and for a model that Eole lacks."""
    config = parse_config(mapping)
    require_family("translation", config)
    model = model_config(config, config.tokenizer.vocab_size, config.tokenizer.vocab_size)
    exports.check_model(model)
    if model.norm_placement != "pre":
        raise UserError(f"model.norm_placement is {model.norm_placement!r}; Eole's is 'pre'.")
    if model.num_encoder_layers != model.num_decoder_layers:
        raise UserError("model.num_encoder_layers and model.num_decoder_layers must be equal: Eole has one number.")


def train_eole(mapping: Any, seconds: float, folder: Path) -> Result:
    """Trains and scores Eole's Transformer of the same sizes: pre-norm, tied embeddings, float32.

    Batches, peak rate, warm-up, dropout and label smoothing are the config's; the rate falls along a cosine that ends
    when the time does. Two short trainings, which are not counted, tell how many steps that is; nor is the making of
    the pieces, which are given as their numbers.

    Args: seconds: for all of ``eole train``.

    Returns: "seconds" it took, "steps", and "scores" of the validation split with the config's beam and length penalty.
    Raises: UserError as `check_eole` does, and where a command fails.
    """
    check_eole(mapping)
    config = parse_config(mapping)
    dataset = load_dataset(config.dataset)
    tokenizers = train_tokenizers(dataset, config.tokenizer)
    eole = interpreter(folder, "eole").parent / "eole"
    home = folder / "eole"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    texts = {split: dataset.splits[split].texts() for split in ("train", "validation")}
    for split, sides in texts.items():
        for name, lines in zip(("source", "target"), sides, strict=True):
            _write_pieces(home / f"{split}.{name}", getattr(tokenizers, name).encode(lines))
    write_text(home / "vocabulary", "".join(f"{k}\t1\n" for k in range(tokenizers.source.vocab_size)))

    def train(steps: int) -> float:
        write_json(home / "eole.yaml", _settings(config, home, steps))  # JSON is YAML
        begin = time.monotonic()
        run([str(eole), "train", "-c", str(home / "eole.yaml")], home / "train.log")
        return time.monotonic() - begin

    short, long = map(train, PROBES)
    a_step = (long - short) / (PROBES[1] - PROBES[0])
    steps = max(PROBES[1], int((seconds - short) / a_step) + PROBES[0])
    print(f"Eole: {a_step:.3f} s a step, {steps:,} steps; see {home / 'train.log'}", flush=True)
    taken = train(steps)
    search = {"beam_size": config.decoding.beam_size, "length_penalty": "wu", "alpha": config.decoding.length_penalty}
    files = {"model_path": home / "model", "src": home / "validation.source", "output": home / "output"}
    flags = [word for key, value in {**files, **search}.items() for word in (f"-{key}", str(value))]
    run([str(eole), "predict", *flags], home / "predict.log")
    lines = (home / "output").read_text().splitlines()
    outputs = tokenizers.target.decode([[int(piece) for piece in line.split()] for line in lines])
    return {"seconds": taken, "steps": steps, "scores": translation_scores(outputs, texts["validation"][1])}


def _write_pieces(path: Path, rows: Sequence[Sequence[int]]) -> None:
    write_text(path, "".join(" ".join(map(str, row)) + "\n" for row in rows))


def _settings(config: TranslationConfig, home: Path, steps: int) -> Mapping[str, Any]:
    model, optimizer = config.model, config.optimizer
    data = {
        name: {f"path_{key}": str(home / f"{split}.{side}") for key, side in (("src", "source"), ("tgt", "target"))}
        for name, split in (("corpus", "train"), ("valid", "validation"))
    }
    return {
        "src_vocab": str(home / "vocabulary"),
        "tgt_vocab": str(home / "vocabulary"),
        "share_vocab": True,
        "save_data": str(home / "data"),
        "overwrite": True,
        "report_every": 100,
        "seed": config.seed,
        "data": {name: {**paths, "transforms": []} for name, paths in data.items()},
        "training": {
            "model_path": str(home / "model"),
            "train_steps": steps,
            "valid_steps": steps + 1,
            "save_checkpoint_steps": steps,
            "batch_size": config.batching.tokens_per_batch,
            "batch_type": "tokens",
            "batch_size_multiple": 1,
            "normalization": "tokens",
            "accum_count": [1],
            "bucket_size": 32768,
            "num_workers": 0,
            "optim": "adam",
            "adam_beta1": 0.9,
            "adam_beta2": 0.98,
            "learning_rate": optimizer.peak_learning_rate,
            "decay_method": "cosine",
            "warmup_steps": min(optimizer.warmup_steps, steps // 4),
            "max_grad_norm": optimizer.clip_norm or 0,
            "label_smoothing": config.task.label_smoothing,
            "dropout": [model["dropout_rate"]],
            "attention_dropout": [model["attention_dropout_rate"]],
            "param_init_method": "xavier_uniform",
            "param_init": 0,
            "compute_dtype": "fp32",
        },
        "model": {
            "architecture": "transformer",
            "layers": model["num_encoder_layers"],
            "heads": model["num_heads"],
            "hidden_size": model["d_model"],
            "transformer_ff": model["d_ff"],
            "share_embeddings": True,
            "share_decoder_embeddings": True,
            "embeddings": {"word_vec_size": model["d_model"], "position_encoding_type": "SinusoidalInterleaved"},
        },
    }
