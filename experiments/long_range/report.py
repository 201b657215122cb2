"""Figures and Markdown tables of the study, made of what results.jsonl holds, complete or not."""

import statistics
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from experiments.long_range.trials import NETWORKS, TASKS, Record, Results
from transformer_jax.analysis.tables import Table
from transformer_jax.data.long_range import TASKS as GENERATED
from transformer_jax.errors import UserError

LABELS = {"lstm": "LSTM", "lstm_attention": "LSTM + attention", "transformer": "Transformer"}
STYLE = {
    "lstm": ("tab:orange", "s", ":"),
    "lstm_attention": ("tab:green", "^", "--"),
    "transformer": ("tab:blue", "o", "-"),
}


def write_report(folder: Path, figures: Path) -> str:
    """Writes report.md into the folder and PNGs into ``figures``. Returns: the tables.

    Raises: UserError when nothing has been measured yet.
    """
    results = Results(folder)
    if not results.file.exists():
        raise UserError(f"{folder} has no results yet: python experiments/long_range/study.py run {folder}")
    figures.mkdir(parents=True, exist_ok=True)
    parts = [_accuracies(results), _tuning(results), _costs(results), _speeds(results)]
    tested = [record for record in results.read("test") if record["task"] in GENERATED]
    if tested:
        _plot_accuracy(tested, figures / "long_range_accuracy.png")
    if speeds := results.read("speed"):
        _plot_speed(speeds, figures / "long_range_speed.png")
    text = "\n".join(part for part in parts if part)
    (folder / "report.md").write_text(text, encoding="utf8")
    return text


def spread(values: list[float], form: Callable[[float], str]) -> str:
    """Mean ± standard deviation over seeds."""
    if not values:
        return "–"  # noqa: RUF001
    deviation = f" ± {form(statistics.stdev(values))}" if len(values) > 1 else ""
    return form(statistics.mean(values)) + deviation


def _accuracies(results: Results) -> str:
    """A table a task: networks by distances."""
    tables = []
    for task in TASKS:
        tested = [record for record in results.read("test") if record["task"] == task]
        if not tested:
            continue
        form = (lambda x: f"{x:.1f}") if task == "multi30k" else (lambda x: f"{100 * x:.1f}")
        at = list(tested[0]["scores"])
        rows = []
        for network in NETWORKS:
            own = [record["scores"] for record in tested if record["network"] == network]
            cells = [spread([scores[distance] for scores in own], form) for distance in at]
            rows.append([LABELS[network], str(len(own)), *cells])
        if task == "multi30k":
            title = "multi30k: BLEU of the test split, by words of the source up to"
            head = at
        else:
            longest = GENERATED[task].trained[-1]
            title = f"{task}: % of outputs right in full, by {GENERATED[task].counts} (trained up to {longest})"
            head = [distance if int(distance) <= longest else f"*{distance}*" for distance in at]
        tables.append(Table(title, ["network", "seeds", *head], rows, left=["network"]).markdown())
    return "\n".join(tables)


def _tuning(results: Results) -> str:
    """Validation loss (Multi30k: minus BLEU) of the search for a learning rate, all of seed 1."""
    trials = [record for record in results.read("trial") if record["seed"] == 1]
    if not trials:
        return ""
    rates = sorted({record["rate"] for record in trials})
    rows = []
    for task in TASKS:
        for network in NETWORKS:
            own = {r["rate"]: r["loss"] for r in trials if (r["task"], r["network"]) == (task, network)}
            if own:
                best = min(own.values())
                cell = lambda value, best=best: f"**{value:.4g}**" if value == best else f"{value:.4g}"
                rows.append([task, LABELS[network], *(cell(own[rate]) if rate in own else "–" for rate in rates)])  # noqa: RUF001
    title = "Validation loss by peak learning rate, one seed each (Multi30k: minus BLEU)"
    return Table(title, ["task", "network", *(f"{rate:g}" for rate in rates)], rows, left=["network"]).markdown()


def _costs(results: Results) -> str:
    """CPU seconds and parameters of a run."""
    trials, rows = results.read("trial"), []
    for task in TASKS:
        own = {name: [r for r in trials if (r["task"], r["network"]) == (task, name)] for name in NETWORKS}
        if any(own.values()):
            cells = [spread([r["cpu_seconds"] for r in own[name]], lambda x: f"{x:.0f}") for name in NETWORKS]
            sizes = [f"{own[name][0]['parameters']:,}" if own[name] else "–" for name in NETWORKS]  # noqa: RUF001
            rows.append([task, *cells, *sizes])
    names = [LABELS[name] for name in NETWORKS]
    title = "CPU seconds of a run, compiling and validation included; parameters"
    columns = ["task", *names, *(f"{name}, parameters" for name in names)]
    return Table(title, columns, rows).markdown() if rows else ""


def _speeds(results: Results) -> str:
    speeds = results.read("speed")
    if not speeds:
        return ""
    lengths = sorted({record["length"] for record in speeds})
    rows = []
    for what in ("training", "decoding"):
        for network in NETWORKS:
            own = {record["length"]: record[what] for record in speeds if record["network"] == network}
            rows.append([what, LABELS[network], *(f"{own[n]:,.0f}" if n in own else "–" for n in lengths)])  # noqa: RUF001
    title = f"Target tokens/s by tokens of a sentence, {speeds[0]['cores']} cores"
    return Table(title, ["", "network", *map(str, lengths)], rows, left=["network"]).markdown()


def _plot_accuracy(tested: list[Record], file: Path) -> None:
    """A panel a task: accuracy against distance, the trained distances on grey; bars span the seeds."""
    tasks = [task for task in GENERATED if any(record["task"] == task for record in tested)]
    figure = Figure(figsize=(max(5.0, 3.1 * len(tasks)), 3.1), layout="constrained")
    axes = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axis, task in zip(axes, tasks, strict=True):
        generated = GENERATED[task]
        axis.axvspan(generated.trained[0], generated.trained[-1], color="0.92", label="trained distances")
        for network in NETWORKS:
            own = [r["scores"] for r in tested if (r["task"], r["network"]) == (task, network)]
            if own:
                color, marker, line = STYLE[network]
                at = [int(distance) for distance in own[0]]
                values = [[100 * scores[str(distance)] for scores in own] for distance in at]
                means = [statistics.mean(some) for some in values]
                ends = [[m - min(v) for m, v in zip(means, values, strict=True)]]
                ends.append([max(v) - m for m, v in zip(means, values, strict=True)])
                axis.errorbar(
                    at, means, yerr=ends, color=color, marker=marker, linestyle=line, capsize=2, label=LABELS[network]
                )
        axis.set(title=task, xlabel=generated.counts, ylim=(-4, 104))
    axes[0].set_ylabel("right in full, %")
    shown = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), fontsize=8, loc="outside upper center", ncols=len(shown))
    figure.savefig(file, dpi=90)


def _plot_speed(speeds: list[Record], file: Path) -> None:
    figure = Figure(figsize=(7.5, 3), layout="constrained")
    for axis, what in zip(figure.subplots(1, 2), ("training", "decoding"), strict=True):
        for network in NETWORKS:
            own = sorted((r["length"], r[what]) for r in speeds if r["network"] == network)
            color, marker, line = STYLE[network]
            axis.plot(*zip(*own, strict=True), color=color, marker=marker, linestyle=line, label=LABELS[network])
        axis.set(title=what, xlabel="tokens of a sentence", ylabel="target tokens/s", xscale="log", yscale="log")
        axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(file, dpi=90)
