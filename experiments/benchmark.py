"""Measures speed: training of a config, or decoding of a run's test split. Shows where a training step's time goes.

    python experiments/benchmark.py train --config=configs/multi30k.py:tiny --seconds=60
    python experiments/benchmark.py profile --config=configs/multi30k.py:tiny --trace=profiles/tiny
    python experiments/benchmark.py decode runs/multi30k-tiny --beam_size=5
    python experiments/benchmark.py decode --random --config=configs/multi30k.py:tiny --forced_tokens=25

Nothing is kept of what is trained. A profile is a table of milliseconds by module, and a trace for Perfetto or for
TensorBoard's profile page. JAX_ENABLE_COMPILATION_CACHE=false times compiling from scratch.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

from absl import flags

from experiments import command_line
from experiments.decoding_flags import decoding_overrides, define_decoding_flags
from transformer_jax.errors import UserError
from transformer_jax.host import prepare_cpu

# A run brings its own config; otherwise one must be given.
CONFIG = command_line.define_config() if {"train", "profile", "--random"} & set(sys.argv) else None
SECONDS = flags.DEFINE_float("seconds", 60.0, "train: time measured, over all windows")
WINDOWS = flags.DEFINE_integer("windows", 5, "train: parts of it, each timed on its own", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 20, "profile: steps traced, after as many that are not", lower_bound=1)
TRACE = flags.DEFINE_string("trace", None, "profile: folder for the trace; default: it is not kept")
RANDOM = flags.DEFINE_bool("random", False, "decode: the initial weights of --config instead of a run")
FORCED = flags.DEFINE_integer("forced_tokens", None, "decode: steps every output takes", lower_bound=1)
LINES = flags.DEFINE_integer("lines", None, "decode: only the first lines of the test split", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 5, "decode: how often the split is translated", lower_bound=1)
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "decode: best, latest, a step, average:N or ema")
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write the result to")
define_decoding_flags()
SINGLES = 20  # lines translated one at a time, for the latency


def main(arguments: list[str]) -> None:
    prepare_cpu()
    from transformer_jax.analysis import benchmark, profiling
    from transformer_jax.analysis.run import load_run, require_family
    from transformer_jax.data.datasets import load_dataset
    from transformer_jax.experiment import parse_config
    from transformer_jax.run_directory import write_json
    from transformer_jax.training.loop import enable_compilation_cache

    mapping = CONFIG.value if CONFIG is not None else None
    if arguments[0] not in ("train", "profile", "decode") or len(arguments) != (2 if mapping is None else 1):
        raise UserError(f"{' '.join(arguments)}: wanted is train, profile, decode RUN, or decode --random.")
    if arguments[0] == "profile":
        # Compiled anew: programs from the cache bear the names that modules had when it was filled.
        with tempfile.TemporaryDirectory() as passing:
            profile = profiling.profile_training(mapping, STEPS.value, Path(TRACE.value or passing))
        print(profiling.format_profile(profile))
        if OUTPUT.value:
            write_json(Path(OUTPUT.value), profiling.as_record(profile))
        return
    enable_compilation_cache()
    if arguments[0] == "train":
        result = benchmark.measure_training(mapping, SECONDS.value, WINDOWS.value)
    else:
        run = load_run(arguments[1], CHECKPOINT.value) if mapping is None else None
        config = run.config if run else parse_config(mapping)
        require_family("translation", config)
        decoding = dataclasses.replace(config.decoding, **decoding_overrides(config))
        if FORCED.value:
            decoding = benchmark.force_length(decoding, FORCED.value)
        translator = run.translator(**vars(decoding)) if run else benchmark.random_translator(config, decoding)
        lines = load_dataset(config.dataset).splits["test"].texts()[0][: LINES.value]
        result = benchmark.measure_decoding(translator, lines, REPEATS.value, SINGLES)
    print(benchmark.format_result(result))
    if OUTPUT.value:
        write_json(Path(OUTPUT.value), result)


if __name__ == "__main__":
    command_line.run_main(main, ("train | profile | decode RUN...",))
