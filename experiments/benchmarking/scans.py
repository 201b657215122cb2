"""Training speed against one thing that is varied: each point is a process of its own."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.benchmarking.processes import measured, write_config
from transformer_jax.analysis.tables import Table
from transformer_jax.config import flatten
from transformer_jax.errors import UserError
from transformer_jax.experiment import plain
from transformer_jax.host import available_cores, has_accelerator

DEVICES = "devices"
NAMES = ("batch_tokens", "length", "vocabulary", "depth", DEVICES)
Result = dict[str, Any]
Points = dict[str, list[str]]


def points_of(config: dict[str, Any], given: Sequence[str]) -> Points:
    """What to vary: for each key its values, the same number of them, of which the first of each make the first point.

    Args:
      config: all of it, plain.
      given: KEY=VALUE,VALUE… for keys of the config or "devices", which change together; or one of NAMES alone, for
        values around the config's own.
    Raises: UserError for anything else.
    """
    points: Points = {}
    for text in given:
        key, equals, values = text.partition("=")
        if not equals and key not in NAMES:
            raise UserError(f"--of={text}: wanted is KEY=VALUE,VALUE…, or one of {', '.join(NAMES)}.")
        points |= {key: values.split(",")} if equals else _around(config, key)
    if not points or len({len(values) for values in points.values()}) != 1:
        counts = ", ".join(f"{key} {len(values)}" for key, values in points.items())
        raise UserError(f"--of: keys that change together need equally many values; given are {counts or 'none'}.")
    return points


def _around(config: dict[str, Any], name: str) -> Points:
    batching, keys = config["batching"], flatten(config)
    rows = "rows" in batching

    def times(key: str, *factors: float) -> list[str]:
        if key not in keys:
            raise UserError(f"--of={name}: this config has no {key}; name the key and its values: --of=KEY=1,2,4.")
        return [str(max(1, int(keys[key] * factor))) for factor in factors]

    if name == "batch_tokens":
        key = "batching.rows" if rows else "batching.tokens_per_batch"
        return {key: times(key, 0.5, 1, 2, 4)}
    if name == "length" and rows:
        lengths = times("batching.length", 0.25, 0.5, 1)
        also = {"evaluation.stride": lengths} if "evaluation.stride" in keys else {}
        return {"batching.length": lengths, "batching.rows": times("batching.rows", 4, 2, 1), **also}
    if name == "length":
        return {"batching.max_length": times("batching.max_length", 0.125, 0.25, 0.5, 1)}
    if name == "vocabulary":
        return {"tokenizer.vocab_size": times("tokenizer.vocab_size", 0.125, 0.25, 0.5, 1)}
    if name == "depth":
        return {
            f"model.{key}": ["1", "2", "4", "8"] for key in config["model"] if key.endswith("layers") and "num_" in key
        }
    if has_accelerator():
        raise UserError("--of=devices: say how many: --of=devices=1,2,4.")
    return {DEVICES: [str(1 << k) for k in range(available_cores().bit_length())]}


def scan(mapping: Any, given: Sequence[str], seconds: float, windows: int) -> Result:
    """Measures training at every point, in turn.

    A number of CPU devices is one of cores, of which each device has one.

    Returns: "points", each with the values that were set and the "result" of `measure_training`, or the "error" that
      refused it.
    Raises: UserError as `points_of`, for more devices than there are, and where no point can be measured.
    """
    config = plain(mapping)
    points = points_of(config, given)
    found: list[Result] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = ["train", f"--config={write_config(folder / 'config.py', mapping)}"]
        words += [f"--seconds={seconds}", f"--windows={windows}"]
        for values in zip(*points.values(), strict=True):
            point = dict(zip(points, values, strict=True))
            print(", ".join(f"{key} {value}" for key, value in point.items()), flush=True)
            overrides = [f"--config.{key}={value}" for key, value in point.items() if key != DEVICES]
            with _devices(point.get(DEVICES)) as settings:
                try:
                    found.append({"values": point, "result": measured([*words, *overrides], folder, settings)})
                except UserError as error:
                    print(error, flush=True)
                    found.append({"values": point, "error": str(error)})
    if all("error" in point for point in found):
        raise UserError(found[0]["error"])
    return {"measured": "scan", "config": config["name"], "points": found}


@contextlib.contextmanager
def _devices(count: str | None) -> Iterator[dict[str, str]]:
    """Variables by which a process that is started meanwhile has so many devices; of a CPU it is given the cores."""
    if count is None:
        yield {}
    elif has_accelerator():
        yield {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(int(count))))}
    elif sys.platform != "linux" or int(count) > available_cores():
        raise UserError(f"--of=devices: {count} cores are wanted; this process may choose among {available_cores()}.")
    else:
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(own)[: int(count)])
        try:
            yield {"JAX_NUM_CPU_DEVICES": count}
        finally:
            os.sched_setaffinity(0, own)


def scan_table(result: Result) -> Table:
    """A row for each point that was measured."""
    keys = list(result["points"][0]["values"])
    columns = [*keys, "target tokens/s", "best", "of float32 peak", "of bfloat16 peak", "ms a step", "peak MiB"]
    rows = []
    for point in _measured(result):
        found = point["result"]
        rate, memory = found["target_tokens_per_second"], found.get("device_peak_bytes", found["peak_rss_bytes"])
        shares = [f"{found['utilisation'][dtype]:.1%}" for dtype in ("float32", "bfloat16")]
        numbers = [f"{rate['median']:,.0f}", f"{rate['best']:,.0f}", *shares]
        numbers += [f"{1000 * found['step_seconds']:,.1f}", f"{memory / 2**20:,.0f}"]
        rows.append([*point["values"].values(), *numbers])
    failed = [", ".join(point["values"].values()) for point in result["points"] if "error" in point]
    notes = [f"failed: {'; '.join(failed)}"] if failed else []
    return Table(f"{result['config']}, {_machine(result)}", columns, rows, notes=notes)


def _is_positive(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False


def _measured(result: Result) -> list[Result]:
    return [point for point in result["points"] if "result" in point]


def scan_figure(result: Result) -> Figure:
    """Tokens/s against the first of the keys: the median of each point's windows, and bars to their least and most."""
    key = next(iter(result["points"][0]["values"]))
    points = _measured(result)
    names = [point["values"][key] for point in points]
    numbers = all(map(_is_positive, names))
    x = [float(name) if numbers else place for place, name in enumerate(names)]
    rates = [point["result"]["target_tokens_per_second"] for point in points]
    middle = [rate["median"] for rate in rates]
    spread = [
        [m - min(rate["windows"]) for m, rate in zip(middle, rates, strict=True)],
        [max(rate["windows"]) - m for m, rate in zip(middle, rates, strict=True)],
    ]
    figure = Figure(figsize=(5.5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(x, middle, yerr=spread, marker="o", capsize=3)
    if numbers:
        axes.set_xscale("log", base=2)
    axes.set_xticks(x, names)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(key)
    axes.set_ylabel("target tokens/s")
    axes.set_title(f"{result['config']}, {_machine(result)}", fontsize="small")
    axes.grid(alpha=0.3)
    return figure


def _machine(result: Result) -> str:
    return ", ".join(dict.fromkeys(point["result"]["devices"] for point in _measured(result)))
