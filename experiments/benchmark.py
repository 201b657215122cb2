"""Measures speed and memory of a config, or of a run's decoding. Shows where a training step's time goes.

    python experiments/benchmark.py all --config=configs/phrases.py --markdown=table.md     # what follows, in turn
    python experiments/benchmark.py start --config=configs/multi30k.py:tiny
    python experiments/benchmark.py train --config=configs/multi30k.py:tiny --seconds=60
    python experiments/benchmark.py pipeline --config=configs/multi30k.py:tiny
    python experiments/benchmark.py checkpoints --config=configs/multi30k.py:tiny
    python experiments/benchmark.py decode --random --config=configs/multi30k.py:tiny --forced_tokens=25
    python experiments/benchmark.py decode runs/multi30k-tiny --beam_size=5
    python experiments/benchmark.py start runs/multi30k-tiny                     # from Python's start to a translation
    python experiments/benchmark.py profile --config=configs/multi30k.py:tiny --trace=profiles/tiny
    python experiments/benchmark.py scan --config=configs/phrases.py --of=vocabulary --figure=vocabulary.png
    python experiments/benchmark.py scan --config=configs/phrases.py --of=model.d_model=64,128 --of=model.d_ff=256,512
    python experiments/benchmark.py quality --config=configs/multi30k.py:ten_minutes  # BLEU, and how long it takes
    python experiments/benchmark.py memory --config=configs/wmt14.py:base --vocabularies=8000,37000 --lengths=256,512
    python experiments/benchmark.py memory --config=configs/language_model.py:gpt2 --target=h100    # not here
    python experiments/benchmark.py train --config=configs/multi30k.py:tiny --against=marian --rounds=3
    python experiments/benchmark.py decode runs/multi30k-tiny --beam_size=5 --against=ctranslate2,joeynmt
    python experiments/benchmark.py start runs/multi30k-tiny --against=transformers
    python experiments/benchmark.py quality --config=configs/multi30k.py:tiny --against=eole

Nothing is kept of what is trained. A scan varies keys of the config together, or batch_tokens, length, vocabulary,
depth or devices around the config's own. A profile is a table of milliseconds by module, and a trace for Perfetto or
for TensorBoard's profile page. `memory` runs nothing: it is what XLA plans, with --target for a GPU that is not here.
quality trains the whole config with nothing cached and scores it on validation. start, scan, quality and all measure in
processes of their own; for the others JAX_ENABLE_COMPILATION_CACHE=false times compiling from scratch.

--against measures other toolkits beside this one, in turn, on the same data, weights and machine: `train` MarianMT of
Hugging Face (`marian`) or PyTorch's own layers under torch.compile with its fused attention (`pytorch`; of a language
model a GPT, and its validation loss after equal time), ours as the same post-norm model, the same batches; `decode`
CTranslate2 and JoeyNMT with the run's weights, as long as the model likes and with every output forced to one length;
`start` Transformers opening the same weights; `quality` Eole, trained as long on the same pieces. Each runs in a
process of its own, and on first use is installed in an environment of its own; or TRANSFORMER_JAX_PEER_PYTHON names a
Python that has it. On a GPU train's peers but MarianMT use it too.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

from absl import flags

from experiments import command_line
from experiments.decoding_flags import decoding_overrides, define_decoding_flags, given_settings
from transformer_jax.errors import UserError
from transformer_jax.host import prepare_cpu, prepare_target

OF_CONFIG = ("all", "train", "pipeline", "checkpoints", "profile", "scan", "quality", "memory")
ACTIONS = (*OF_CONFIG, "decode", "start")
# A run brings its own config; otherwise one must be given.
GIVEN = {word.partition("=")[0].lstrip("-") for word in sys.argv}
CONFIG = command_line.define_config() if {*OF_CONFIG, "random", "config"} & GIVEN else None
SECONDS = flags.DEFINE_float("seconds", 60.0, "all, train, pipeline, scan: time measured; --against: in each turn")
WINDOWS = flags.DEFINE_integer("windows", 5, "train, scan: parts of it, each timed on its own", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 20, "profile: steps traced, after as many that are not", lower_bound=1)
TRACE = flags.DEFINE_string("trace", None, "profile: folder for the trace; default: it is not kept")
OF = flags.DEFINE_multi_string("of", [], "scan: KEY=VALUE,VALUE…, or one name of a usual scan")
FIGURE = flags.DEFINE_string("figure", None, "scan: PNG or SVG file to draw it to")
VOCABULARIES = flags.DEFINE_list("vocabularies", ["8000", "16000", "32000", "64000"], "memory: at the config's length")
LENGTHS = flags.DEFINE_list("lengths", ["128", "256", "512", "1024"], "memory: at the config's vocabulary")
REMAT = flags.DEFINE_list("remat", ["none", "dots", "full"], "memory: policies of model.remat")
TARGET = command_line.define_target()
RANDOM = flags.DEFINE_bool("random", False, "decode: the initial weights of --config instead of a run")
FORCED = flags.DEFINE_integer("forced_tokens", None, "decode: steps every output takes", lower_bound=1)
LINES = flags.DEFINE_integer("lines", None, "decode: only the first lines of the test split", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 5, "decode, checkpoints: how often it is done", lower_bound=1)
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "decode, start: best, latest, a step, average:N or ema")
TEXT = flags.DEFINE_string("text", "Two men are cooking in a small kitchen.", "start: what a run translates first")
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write the result to")
MARKDOWN = flags.DEFINE_string("markdown", None, "file to write the result to as a table to paste")
AGAINST = flags.DEFINE_list("against", [], "other toolkits measured beside this one; which, see above")
ROUNDS = flags.DEFINE_integer("rounds", 3, "--against: how often the toolkits take turns", lower_bound=1)
PEERS = flags.DEFINE_string("peers", None, "--against: folder of their environments; default: in the cache folder")
define_decoding_flags()
BESIDE = {
    "train": ("marian", "pytorch"),
    "decode": ("ctranslate2", "joeynmt"),
    "start": ("transformers",),
    "quality": ("eole",),
}
SHARED = ("beam_size", "length_penalty")  # settings of decoding that all toolkits have
FORCED_BESIDE = 25  # tokens of every output, where none are given
SINGLES = 20  # lines translated one at a time, for the latency


def main(arguments: list[str]) -> None:
    action, *runs = arguments
    mapping = CONFIG.value if CONFIG is not None else None
    untrained = action == "decode" and mapping is not None
    if action not in ACTIONS or len(runs) != (mapping is None) or untrained != RANDOM.value:
        wanted = f"{', '.join(OF_CONFIG)} or start with --config, start RUN, decode RUN, or decode --random"
        raise UserError(f"{' '.join(arguments)}: wanted is {wanted}.")
    if AGAINST.value:
        _check_peers(action, mapping, runs)
    if TARGET.value:
        if action != "memory":
            raise UserError(f"--target={TARGET.value}: {action} would run on it; memory only compiles.")
        prepare_target()
    from transformer_jax.run_directory import write_json, write_text

    if AGAINST.value:
        measure = _beside
    else:
        measure = _across_processes if action in ("all", "start", "scan", "quality") else _here
    result, table = measure(action, mapping, runs)
    table.show()
    if OUTPUT.value:
        write_json(Path(OUTPUT.value), result)
    if MARKDOWN.value:
        write_text(Path(MARKDOWN.value), table.markdown())


def _check_peers(action: str, mapping: Any, runs: list[str]) -> None:
    known = BESIDE.get(action, ())
    if action == "train" and mapping.family == "language_model":
        known = ("pytorch",)
    needs_run = action in ("decode", "start")
    if set(AGAINST.value) - set(known) or (action == "train" and len(AGAINST.value) > 1) or needs_run != bool(runs):
        of_what = f"{action} RUN" if needs_run else action
        peers = f"one of {', '.join(known)}" if known else "no toolkit; train, quality, decode RUN and start RUN can"
        raise UserError(f"--against={','.join(AGAINST.value)}: {of_what} can be measured beside {peers}.")
    if others := sorted(set(given_settings()) - set(SHARED) if action == "decode" else ()):
        raise UserError(f"--{others[0]}: beside other toolkits only {' and '.join(SHARED)} can be set, which all have.")


def _beside(action: str, mapping: Any, runs: list[str]) -> Any:
    """The result and its table, in turn with other toolkits."""
    from experiments.benchmarking import quality
    from experiments.peers import comparison, environments, eole, language_models, loading

    folder = environments.work_folder(PEERS.value)
    forced, rounds, checkpoint = FORCED.value or FORCED_BESIDE, ROUNDS.value, CHECKPOINT.value
    if action == "start":
        result = loading.compare_loading(runs[0], checkpoint, forced, rounds, folder)
        return result, loading.loading_table(result)
    if action == "decode":
        of_lines = (LINES.value, forced, REPEATS.value, rounds)
        result = comparison.compare_decoding(runs[0], checkpoint, AGAINST.value, given_settings(), *of_lines, folder)
        return result, comparison.decoding_table(result)
    if action == "quality":
        eole.check_eole(mapping)
        environments.interpreter(folder, "eole")  # what cannot be installed is known before the training
        result = quality.measure_quality(mapping)
        result["against"] = {"Eole": eole.train_eole(mapping, result["seconds"], folder)}
        return result, quality.quality_table(result)
    if mapping.family == "language_model":
        result = language_models.compare_language_models(mapping, SECONDS.value, rounds, folder)
        return result, language_models.language_models_table(result)
    result = comparison.compare_training(mapping, AGAINST.value[0], SECONDS.value, rounds, folder)
    return result, comparison.training_table(result)


def _across_processes(action: str, mapping: Any, runs: list[str]) -> Any:
    """The result and its table, each part measured in a process of its own."""
    from experiments.benchmarking import processes, quality, scans
    from transformer_jax.analysis import benchmark

    if action == "scan":
        result = scans.scan(mapping, OF.value, SECONDS.value, WINDOWS.value)
        if FIGURE.value:
            scans.scan_figure(result).savefig(FIGURE.value, dpi=150)
        return result, scans.scan_table(result)
    if action == "quality":
        result = quality.measure_quality(mapping)
        return result, quality.quality_table(result)
    if action == "all":
        result = processes.measure_all(mapping, SECONDS.value)
    elif runs:
        result = processes.measure_first_translation(runs[0], CHECKPOINT.value, TEXT.value)
    else:
        result = processes.measure_start(mapping)
    return result, benchmark.result_table(result)


def _here(action: str, mapping: Any, runs: list[str]) -> Any:
    """The result and its table, measured in this process."""
    prepare_cpu()
    from transformer_jax.analysis import benchmark, memory, profiling
    from transformer_jax.training.loop import enable_compilation_cache

    if action == "profile":
        # Compiled anew: programs from the cache bear the names that modules had when it was filled.
        with tempfile.TemporaryDirectory() as passing:
            profile = profiling.profile_training(mapping, STEPS.value, Path(TRACE.value or passing))
        return profiling.as_record(profile), profiling.profile_table(profile)
    if not TARGET.value:
        enable_compilation_cache()
    if action == "memory":
        sizes = _numbers(VOCABULARIES), _numbers(LENGTHS)
        result = memory.tabulate_memory(mapping, *sizes, REMAT.value, TARGET.value)
        return result, memory.memory_table(result)
    if action == "train":
        result = benchmark.measure_training(mapping, SECONDS.value, WINDOWS.value)
    elif action == "pipeline":
        result = benchmark.measure_pipeline(mapping, SECONDS.value)
    elif action == "checkpoints":
        result = benchmark.measure_checkpoints(mapping, REPEATS.value)
    else:
        result = _decode(mapping, runs)
    return result, benchmark.result_table(result)


def _numbers(flag: Any) -> list[int]:
    for text in flag.value:
        if not text.isdecimal():
            raise UserError(f"--{flag.name}={','.join(flag.value)}: {text!r} is no number.")
    return [int(text) for text in flag.value]


def _decode(mapping: Any, runs: list[str]) -> dict[str, Any]:
    from transformer_jax.analysis import benchmark
    from transformer_jax.analysis.run import load_run, require_family
    from transformer_jax.data.datasets import load_dataset
    from transformer_jax.experiment import parse_config

    run = load_run(runs[0], CHECKPOINT.value) if runs else None
    config = run.config if run else parse_config(mapping)
    require_family("translation", config)
    decoding = dataclasses.replace(config.decoding, **decoding_overrides(config))
    if FORCED.value:
        decoding = benchmark.force_length(decoding, FORCED.value)
    translator = run.translator(**vars(decoding)) if run else benchmark.random_translator(config, decoding)
    lines = load_dataset(config.dataset.each_once()).splits["test"].texts()[0][: LINES.value]
    return benchmark.measure_decoding(translator, lines, REPEATS.value, SINGLES)


if __name__ == "__main__":
    command_line.run_main(main, ("ACTION [RUN] ...",))
