"""What experiments/ablation.py does: its settings, its runs, its table."""

import copy
import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from transformer_jax.analysis.ensemble import EnsembleRun
from transformer_jax.analysis.run import load_run
from transformer_jax.analysis.tables import Table
from transformer_jax.config import differences, flatten, suggest
from transformer_jax.data.datasets import SPLITS
from transformer_jax.errors import UserError
from transformer_jax.experiment import parse_config, plain
from transformer_jax.run_directory import write_json, write_text
from transformer_jax.training.loop import train

BASE, PRETRAINED = "base", "bidirectional-pretraining"
SCORES = {"bleu": "BLEU", "bleu_lowercase_tokenized": "BLEU, lower-cased", "chrf": "chrF2", "perplexity": "perplexity"}
TEACHERS = {"distilled": BASE, "back_translated": "reversed"}
"""Whose translations each key of the dataset names: the base's, or those of the base in the other direction."""
AVERAGED = 8
"""Checkpoints in the mean; the base's runs keep as many."""
SAMPLES = {"method": "sample", "n_best": 1, "candidates": 32, "rerank": "chrf"}


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
      overrides: what is changed of the base config, by dotted key, in runs of its own.
      pretrained: these runs start from one that has learned both directions for the first third of the steps, and take
        the other two themselves (Ding et al. 2021).
      translated: keys of the dataset. "distilled": the training sources are there a second time, as the base's runs
        together translate them (Kim and Rush 2016). "back_translated": the training targets are, as as many runs of the
        other direction do (Sennrich et al. 2016).
      checkpoint: which weights are taken of the base's runs, as for `load_run`.
      decoding: what is changed of decoding alone: then the runs are those of the base.
      together: all seeds at once, as an ensemble, or as a pool of candidates.
    """

    overrides: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    translated: tuple[str, ...] = ()
    checkpoint: str = "best"
    decoding: dict[str, Any] = field(default_factory=dict)
    together: Literal["", "ensemble", "pool"] = ""

    @property
    def trains(self) -> bool:
        """Whether it needs runs of its own, instead of those of the base."""
        return bool(self.overrides or self.pretrained or self.translated)


def _regularizer(name: str, weight: float) -> Setting:
    return Setting({"task.regularizer": name, "task.regularizer_weight": weight})


def _optimizer(name: str, **others: Any) -> Setting:
    return Setting({"optimizer.name": name, **{f"optimizer.{key}": value for key, value in others.items()}})


def _depths(encoder: int, decoder: int) -> Setting:
    return Setting({"model.num_encoder_layers": encoder, "model.num_decoder_layers": decoder})


SETTINGS = {
    BASE: Setting(),
    **{f"subword-sampling-{rate}": Setting({"tokenizer.sampling": rate}) for rate in (0.0, 0.1, 0.2)},
    **{f"vocabulary-{size}": Setting({"tokenizer.vocab_size": size}) for size in (4000, 6000, 10000)},
    "no-regularizer": _regularizer("none", 0.0),
    "r-drop": _regularizer("r_drop", 5.0),
    "simcut": _regularizer("simcut", 3.0),
    **{f"label-smoothing-{rate}": Setting({"task.label_smoothing": rate}) for rate in (0.0, 0.1, 0.2)},
    **{
        schedule.replace("_", "-"): Setting({"optimizer.schedule": schedule})
        for schedule in ("inverse_square_root", "linear", "cosine", "warmup_stable_decay")
    },
    "adam": _optimizer("adam", weight_decay=0.0),
    "adamw": _optimizer("adamw", weight_decay=0.01),
    "muon": _optimizer("muon"),
    "schedule-free": _optimizer("schedule_free_adamw", schedule="constant"),
    "last-weights": Setting(checkpoint="latest"),
    f"average-{AVERAGED}": Setting(checkpoint=f"average:{AVERAGED}"),
    "ema": Setting({"evaluation.weights": "ema", "training.ema_decay": 0.998}),
    **{f"{kind}-positions": Setting({"model.positions": kind}) for kind in ("sinusoidal", "rotary", "relative")},
    **{unit: Setting({"model.activation": unit}) for unit in ("relu", "swiglu")},
    "depth-6-2": _depths(6, 2),
    "depth-4-4": _depths(4, 4),
    "depth-2-6": _depths(2, 6),
    "post-norm": Setting({"model.norm_placement": "post"}),
    "pre-norm": Setting({"model.norm_placement": "pre"}),
    "rms-norm": Setting({"model.norm": "rms_norm"}),
    **{
        f"dropout-{rate}": Setting({"model.dropout_rate": rate, "model.embedding_dropout_rate": rate})
        for rate in (0.1, 0.2, 0.3, 0.4)
    },
    "embedding-dropout-0.0": Setting({"model.embedding_dropout_rate": 0.0}),
    **{f"attention-dropout-{rate}": Setting({"model.attention_dropout_rate": rate}) for rate in (0.0, 0.1)},
    **{f"activation-dropout-{rate}": Setting({"model.activation_dropout_rate": rate}) for rate in (0.0, 0.1)},
    PRETRAINED: Setting(pretrained=True),
    "distillation": Setting(translated=("distilled",)),
    "back-translation": Setting(translated=("back_translated",)),
    "diversification": Setting(translated=("distilled", "back_translated")),
    "ensemble": Setting(together="ensemble"),
    "minimum-risk-samples": Setting(decoding=SAMPLES),
    "minimum-risk-beam": Setting(decoding={**SAMPLES, "method": "beam", "beam_size": 16, "candidates": 16}),
    "minimum-risk-pool": Setting(decoding=SAMPLES, together="pool"),
}
"""Each row, by name. A row whose overrides are what the base has is left out of a study."""


class Study:
    """A folder of runs, and what is known from them.

    Args:
      config: of the base; translation.
      seeds: runs of each setting, with config.seed, config.seed + 1, …
      names: rows to make; None is all that apply.
    Raises: UserError for a name that there is not, for a setting that cannot go with the config, and where the folder
      is of a study of another config.
    """

    def __init__(self, folder: str | Path, config: ConfigDict, seeds: int, names: Sequence[str] | None = None):
        self.folder, self.config = Path(folder), config
        self.seeds = range(config.seed, config.seed + seeds)
        base = flatten(plain(config))
        self.names = []
        for name in SETTINGS if names is None else names:
            if name not in SETTINGS:
                raise UserError(f"--settings: there is no {name!r}. {suggest(name, SETTINGS)}")
            overrides = SETTINGS[name].overrides
            missing = sorted(overrides.keys() - base.keys())
            problem = f"sets {missing[0]}, which {config.name} has not" if missing else ""
            if (SETTINGS[name].together or SETTINGS[name].translated) and seeds < 2:
                problem = "is of two seeds or more, and --seeds is 1"
            if present := [key for key in SETTINGS[name].translated if config.dataset.get(key)]:
                problem = f"sets dataset.{present[0]}, which the base has already"
            tables = [split for split in SPLITS if config.dataset.get(split) and "," not in config.dataset[split]]
            if tables and "back_translated" in SETTINGS[name].translated:
                problem = f"needs both directions: dataset.{tables[0]} must name two files"
            if SETTINGS[name].checkpoint == f"average:{AVERAGED}":
                checkpoints = -(-config.training.total_steps // config.checkpoints.every_steps)
                if checkpoints < AVERAGED or config.evaluation.patience:
                    problem = f"is the mean of {AVERAGED} checkpoints, and a run writes {checkpoints}"
                    problem += " or, with evaluation.patience, fewer" if config.evaluation.patience else ""
            if problem and names is not None:
                raise UserError(f"--settings: {name} {problem}; leave it out.")
            if problem:
                continue
            if not overrides or any(base[key] != value for key, value in overrides.items()):
                parse_config(self._changed(SETTINGS[name], config.seed))
                self.names.append(name)
        kept = self.folder / "base.json"
        if not kept.is_file():
            write_json(kept, plain(config))
        elif changed := differences(json.loads(kept.read_text()), plain(config)):
            raise UserError(f"{self.folder} is a study of another config (there -> here): {'; '.join(changed)}.")

    def make(self, name: str) -> None:
        """One row: trains what is missing, scores validation, writes the report."""
        setting = SETTINGS[name]
        if setting.together:
            self._score(name, *self.seeds)
        else:
            for seed in self.seeds:
                self._score(name, seed)
        self.write_report()

    def _score(self, name: str, *seeds: int) -> None:
        """Scores validation with one seed's run, or with those of several together, unless that has been done."""
        setting = SETTINGS[name]
        file = self.folder / "scores" / f"{self._named(name)}-{_joined(seeds)}.json"
        if not file.is_file():
            runs = [load_run(self._run(name, seed), setting.checkpoint) for seed in seeds]
            run = EnsembleRun(runs, pool=setting.together == "pool") if setting.together else runs[0]
            record, _ = run.evaluate("validation", None, **setting.decoding)
            teachers = {"teachers": list(self.seeds)} if setting.translated else {}
            write_json(file, {"setting": name, "seeds": seeds, **teachers, **record})
            jax.clear_caches()

    def _run(self, name: str, seed: int) -> Path:
        """The run that a row's score is of, trained to its end."""
        setting = SETTINGS[name]
        if not setting.trains:
            name, setting = BASE, SETTINGS[BASE]
        for key in setting.translated:
            self._translate(key)
        if setting.pretrained:
            self._train(self._pretraining(seed), f"{name}-first-{seed}")
        return self._train(self._changed(setting, seed), f"{self._named(name)}-{seed}")

    def _named(self, name: str) -> str:
        """A row's runs and scores in the folder: what has learned from other runs is another."""
        return f"{name}-from-{_joined(self.seeds)}" if SETTINGS[name].translated else name

    def _train(self, config: ConfigDict, name: str) -> Path:
        folder = self.folder / "runs" / name
        if not train(config, folder).finished:
            raise UserError(f"{folder} was interrupted; the same command continues.")
        jax.clear_caches()
        return folder

    def _translate(self, key: str) -> None:
        """Writes what the teachers of dataset.KEY together make of the training text, unless that has been done."""
        if not (taught := self._taught(key)).is_file():
            configs = {seed: self._changed(SETTINGS[BASE], seed) for seed in self.seeds}
            if key == "back_translated":
                configs = {seed: _reversed(config) for seed, config in configs.items()}
            runs = [self._train(config, f"{TEACHERS[key]}-{seed}") for seed, config in configs.items()]
            record, _ = EnsembleRun([load_run(run) for run in runs]).evaluate("train", None)
            write_text(taught, (runs[0] / record["translations"]).read_bytes().decode())
            jax.clear_caches()

    def _taught(self, key: str) -> Path:
        return self.folder / f"{key}-{_joined(self.seeds)}.txt"

    def _changed(self, setting: Setting, seed: int) -> ConfigDict:
        """The config of a row's runs."""
        changed = copy.deepcopy(self.config)
        changed.update_from_flattened_dict({**setting.overrides, "seed": seed})
        if setting == SETTINGS[BASE]:
            changed.checkpoints.keep_latest = max(AVERAGED, changed.checkpoints.keep_latest)
        for key in setting.translated:
            changed.dataset[key] = str(self._taught(key))
        if setting.pretrained:
            changed.training.total_steps -= self._pretraining(seed).training.total_steps
            changed.initialize.run = str(self.folder / "runs" / f"{PRETRAINED}-first-{seed}")
        return changed

    def _pretraining(self, seed: int) -> ConfigDict:
        first = copy.deepcopy(self.config)
        steps = max(1, first.training.total_steps // 3)
        first.update_from_flattened_dict({"seed": seed, "dataset.bidirectional": True, "training.total_steps": steps})
        return first

    def write_report(self) -> list[Table]:
        """All rows as far as they are known, of validation: table.md, table.json, and differences.png."""
        found: dict[str, list[dict[str, Any]]] = {}
        for file in sorted((self.folder / "scores").glob("*.json")):
            record = json.loads(file.read_text())
            if record.get("teachers") not in (None, [*self.seeds]):
                continue  # what other runs have taught is another row
            found.setdefault(record["setting"], []).append(record)
        rows = [_row(name, found[name], found.get(BASE, [])) for name in SETTINGS if name in found]
        write_json(self.folder / "table.json", rows)
        columns = ["setting", "what is set", "runs", *SCORES.values(), "BLEU against base"]
        tables = [
            Table(title, columns, [_cells(row) for row in rows if row["decoded"] == decoded], left=columns[:2])
            for title, decoded in (("Trained", False), ("With the runs of the base", True))
        ]
        tables = [table for table in tables if table.rows]
        write_text(self.folder / "table.md", "\n".join(table.markdown() for table in tables))
        if changed := [row for row in rows if "against_base" in row]:
            partial = self.folder / f".differences-{os.getpid()}.png"
            differences_figure(changed, found[BASE]).savefig(partial, dpi=110)
            partial.replace(self.folder / "differences.png")
        return tables


def _reversed(config: ConfigDict) -> ConfigDict:
    """The same in the other direction."""
    other, dataset = copy.deepcopy(config), config.dataset
    other.dataset.source_language, other.dataset.target_language = dataset.target_language, dataset.source_language
    for split in SPLITS:
        other.dataset[split] = ",".join(reversed(dataset[split].split(",")))
    return other


def _joined(seeds: Iterable[int]) -> str:
    return "-".join(map(str, seeds))


def _row(name: str, records: list[dict[str, Any]], base: list[dict[str, Any]]) -> dict[str, Any]:
    setting = SETTINGS[name]
    scores = {score: [record["scores"][score] for record in records] for score in SCORES}
    row: dict[str, Any] = {
        "setting": name,
        "set": {
            **setting.overrides,
            **({"checkpoint": setting.checkpoint} if setting.checkpoint != "best" else {}),
            **setting.decoding,
            **({"together": setting.together} if setting.together else {}),
            **({"dataset.bidirectional": "in the first third"} if setting.pretrained else {}),
            **{
                f"dataset.{key}": f"by {TEACHERS[key]} {'+'.join(map(str, records[0]['teachers']))}"
                for key in setting.translated
            },
        },
        "decoded": name != BASE and not setting.trains,
        "seeds": [record["seeds"] for record in records],
        "scores": scores,
        "mean": {score: statistics.mean(values) for score, values in scores.items()},
        "deviation": {score: statistics.stdev(v) if len(v) > 1 else None for score, v in scores.items()},
    }
    if base and name != BASE:
        of_base = {score: statistics.mean(record["scores"][score] for record in base) for score in SCORES}
        row["against_base"] = {score: row["mean"][score] - of_base[score] for score in SCORES}
    return row


def differences_figure(rows: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> Figure:
    """BLEU of each row less the base's mean: a bar is the mean, a point a run; the band is the base's own runs."""
    of_base = [record["scores"]["bleu"] for record in base]
    middle = statistics.mean(of_base)
    rows = sorted(rows, key=lambda row: row["mean"]["bleu"])
    figure = Figure(figsize=(6.5, 1.2 + 0.25 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(min(of_base) - middle, max(of_base) - middle, color="0.9", label=f"the base's {len(of_base)} runs")
    axes.axvline(0, color="0.5", linewidth=1)
    for label, color, decoded in (("trained", "tab:blue", False), ("with the base's runs", "tab:orange", True)):
        own = [(place, row) for place, row in enumerate(rows) if row["decoded"] == decoded]
        if own:
            bars = [row["mean"]["bleu"] - middle for _, row in own]
            axes.barh([place for place, _ in own], bars, color=color, alpha=0.5, label=label)
        for place, row in own:
            runs = [score - middle for score in row["scores"]["bleu"]]
            axes.plot(runs, [place] * len(runs), "o", color=color, markersize=3)
    axes.set_yticks(range(len(rows)), [row["setting"] for row in rows])
    axes.set_xlabel(f"BLEU on validation, less the base's {middle:.2f}")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def _cells(row: dict[str, Any]) -> list[str]:
    means, deviations = row["mean"], row["deviation"]
    spread = lambda score: "" if deviations[score] is None else f" ± {deviations[score]:.2f}"
    return [
        row["setting"],
        ", ".join(f"{key}={value}" for key, value in row["set"].items()),
        " and ".join("+".join(map(str, seeds)) for seeds in row["seeds"]),
        *(f"{means[score]:.2f}{spread(score)}" for score in SCORES),
        f"{row['against_base']['bleu']:+.2f}" if "against_base" in row else "",
    ]
