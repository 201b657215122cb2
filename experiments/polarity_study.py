"""What experiments/polarity.py does: its text, its settings, its runs, its table."""

import gzip
import itertools
import json
import re
import statistics
from pathlib import Path
from typing import Any

from experiments.command_line import load_config
from transformer_jax.analysis.run import load_run
from transformer_jax.data.labelled import read_movie_reviews
from transformer_jax.errors import UserError
from transformer_jax.run_directory import write_json, write_text
from transformer_jax.training.loop import train

SIDES = ("scratch", "pretrained")
SHARES = (1.0, 0.1, 0.01)
STEPS = {1.0: (800, 80), 0.1: (300, 25), 0.01: (120, 10)}  # steps, and how many lie between evaluations
SEEDS = (1, 2, 3, 4, 5)
TUNING_SEEDS = {1.0: (101,), 0.1: (101,), 0.01: (101, 102, 103)}  # the fewer the labels, the noisier one score
CHOICES = {
    "layers": ("pre", "post"),
    "optimizer.peak_learning_rate": (5e-4, 2e-3, 5e-3),
    "model.dropout_rate": (0.1, 0.3),
}
LAYERS = {
    "pre": {"model.norm_placement": "pre", "model.initializer": "xavier"},
    "post": {"model.norm_placement": "post", "model.initializer": "bert"},  # as BERT's
}
OTHER_TEXT = ("multi30k/train.en.gz", "tatoeba_de_en/train.en.gz")
REPEATS = 4  # of the reviews among the unlabelled text, of which they are an eighth
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SIZES = {
    "model.num_layers": 2,
    "model.d_model": 128,
    "model.d_ff": 512,
    "model.num_heads": 4,
    "model.max_length": 64,
    "model.attention_dropout_rate": 0.0,
    "model.dtype": "bfloat16_products",
}
PRETRAINING = {
    "dataset.documents": "lines",
    "dataset.train": "train.txt",
    "dataset.validation": "validation.txt",
    "masking.rate": 0.4,
    "masking.unit": "word",
    "batching.rows": 32,
    "batching.length": 64,
    "optimizer.peak_learning_rate": 4e-3,
    "optimizer.warmup_steps": 300,
    "checkpoints.every_steps": 1000,
    "evaluation.every_steps": 1000,
    **SIZES,
}
FINE_TUNING = {
    "batching.tokens_per_batch": 1024,
    "batching.max_length": 64,
    "batching.num_shapes": 2,
    "model.pooling": "mean",
    "optimizer.warmup_steps": 20,
    "evaluation.patience": 4,
    "training.log_every_steps": 50,
}


def plain_text(line: str) -> str:
    """A line as the reviews are written: in lower case, signs apart from words."""
    return " ".join(re.sub(r"([^\w\s'-])", r" \1 ", line.lower()).split())


class Study:
    """A folder of runs, and what is known from them."""

    def __init__(self, folder: str | Path, data: str | Path, pretraining_steps: int):
        self.folder, self.data, self.pretraining_steps = Path(folder), Path(data), pretraining_steps

    def write_text(self) -> Path:
        """The unlabelled text, once; the folder it is in."""
        folder = self.folder / "text"
        if not (folder / "train.txt").exists():
            for name in OTHER_TEXT:
                if not (self.data / name).is_file():
                    raise UserError(f"--data={self.data} lacks {name}.")
            reviews = read_movie_reviews(self.data / "movie_reviews")
            lines = [text for (text,) in reviews["train"].texts] * REPEATS
            for name in OTHER_TEXT:
                lines += map(plain_text, gzip.decompress((self.data / name).read_bytes()).decode().splitlines())
            folder.mkdir(parents=True, exist_ok=True)
            validation = [text for (text,) in reviews["validation"].texts]
            for name, texts in (("validation", validation), ("train", lines)):
                write_text(folder / f"{name}.txt", "".join(f"{line}\n" for line in texts))
        return folder

    def pretrained(self, layers: str) -> Path:
        """The run that the pretrained side starts from with such layers, trained to its end."""
        steps = {"training.total_steps": self.pretraining_steps}
        settings = {"dataset.path": self.write_text(), **steps, **PRETRAINING, **LAYERS[layers]}
        return self._train("masked_lm.py:files", f"pretraining-{layers}", settings)

    def make(self, side: str, share: float) -> None:
        """One cell of the table: tunes on validation, then trains and tests with every seed."""
        scores = []
        options = [dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*CHOICES.values())]
        for option in options:
            runs = [self._fine_tune(side, share, seed, option) for seed in TUNING_SEEDS[share]]
            found = [max(load_run(run).history()["validation/accuracy"].dropna()) for run in runs]
            scores.append(statistics.mean(found))
        best = options[scores.index(max(scores))]
        tests = []
        for seed in SEEDS:
            record, _ = load_run(self._fine_tune(side, share, seed, best)).evaluate("test", None)
            tests.append(record["scores"]["accuracy"])
        cell = {"side": side, "share": share, "chosen": best, "validation": scores, "options": options, "test": tests}
        write_json(self.folder / f"cell-{side}-{share}.json", cell)
        self.write_table()

    def _fine_tune(self, side: str, share: float, seed: int, option: dict[str, Any]) -> Path:
        steps, every = STEPS[share]
        layers, chosen = option["layers"], {key: value for key, value in option.items() if key != "layers"}
        settings: dict[str, Any] = {
            "seed": seed,
            "dataset.path": self.data / "movie_reviews",
            "dataset.share": share,
            "training.total_steps": steps,
            "evaluation.every_steps": every,
            "checkpoints.every_steps": every,
            **FINE_TUNING,
            **chosen,
            "model.embedding_dropout_rate": option["model.dropout_rate"],
        }
        if side == "pretrained":
            spec = f"classification.py:reviews,{self.pretrained(layers)}"
        else:
            spec, settings = "classification.py:reviews", {**SIZES, **LAYERS[layers], **settings}
        named = "-".join(str(value) for value in option.values())
        return self._train(spec, f"{side}-{share}-seed{seed}-{named}", settings)

    def _train(self, spec: str, name: str, settings: dict[str, Any]) -> Path:
        folder = self.folder / name
        config = load_config(f"{CONFIGS / spec}", [f"{key}={value}" for key, value in settings.items()])
        if not train(config, folder).finished:
            raise UserError(f"{folder} was interrupted; the same command continues.")
        return folder

    def write_table(self) -> str:
        """The table as far as it is known: accuracy on test in percent, mean ± standard deviation over the seeds."""
        cells = [json.loads(file.read_text()) for file in sorted(self.folder.glob("cell-*.json"))]
        write_json(self.folder / "table.json", cells)
        known = {(cell["side"], cell["share"]): cell["test"] for cell in cells}
        lines = ["| labels | from scratch | pretrained | gain |", "|---|---|---|---|"]
        for share in SHARES:
            sides = [known.get((side, share)) for side in SIDES]
            shown = [f"{_summary(accuracies)}" if accuracies else "not yet" for accuracies in sides]
            both = [[100 * value for value in accuracies] for accuracies in sides if accuracies]
            gains = [b - a for a, b in zip(*both, strict=True)] if len(both) == len(SIDES) else []
            gain = f"{statistics.mean(gains):+.1f} ± {statistics.stdev(gains):.1f}" if gains else ""
            lines.append(f"| {share:.0%} | {shown[0]} | {shown[1]} | {gain} |")
        table = "\n".join(lines) + "\n"
        write_text(self.folder / "table.md", table)
        return table


def _summary(accuracies: list[float]) -> str:
    percent = [100 * accuracy for accuracy in accuracies]
    return f"{statistics.mean(percent):.1f} ± {statistics.stdev(percent):.1f}"
