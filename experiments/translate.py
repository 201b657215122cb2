"""Translates a file, a pipe, or what is typed, with any checkpoint of a run.

    python experiments/translate.py runs/multi30k-tiny news.en --output=news.de
    python experiments/translate.py runs/multi30k-tiny < news.en > news.de
    python experiments/translate.py runs/multi30k-tiny --n_best=5 --checkpoint=average:8      # type, Ctrl-D
    to leave
    python experiments/translate.py runs/a news.en --ensemble=runs/b,runs/a@1200 --output=news.de

The output has a line for each line of the input, empty ones included. With --n_best above 1, or --scores, it
has rows of line number, score, log-probability and text. Decoding settings that are not given are the run's
own.
"""

import sys

from absl import flags

from experiments import command_line, decoding_flags
from experiments.decoding_flags import decoding_overrides, define_decoding_flags, define_ensemble
from transformer_jax.errors import UserError
from transformer_jax.host import prepare_cpu

CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, a step, average:N or ema")
OUTPUT = flags.DEFINE_string("output", None, "file to write; standard output if not given")
SCORES = flags.DEFINE_bool("scores", False, "write scores with the text")
ENSEMBLE, POOL = define_ensemble()
DISTRIBUTED = command_line.define_distributed()
define_decoding_flags()
flags.adopt_module_key_flags(decoding_flags)


def main(arguments: list[str]) -> None:
    prepare_cpu()
    from transformer_jax import distributed
    from transformer_jax.analysis.ensemble import open_ensemble
    from transformer_jax.analysis.run import require_family
    from transformer_jax.decoding.lines import interact, open_output, read_lines, translate_lines
    from transformer_jax.training.loop import enable_compilation_cache

    distributed.start(DISTRIBUTED.value)
    path, *files = arguments
    if not files and distributed.several():
        raise UserError("With several processes each must read the same lines: name a FILE that all of them see.")
    lines = read_lines(files, sys.stdin.buffer)
    run = open_ensemble(path, CHECKPOINT.value, ENSEMBLE.value, POOL.value)
    require_family("translation", run.config)
    enable_compilation_cache()
    translator = run.translator(**decoding_overrides(run.config))
    scores = SCORES.value or translator.config.n_best > 1
    if not distributed.is_main():
        for _ in translator.stream(lines):
            pass
    elif not files and OUTPUT.value is None and sys.stdin.isatty():
        interact(translator, scores)
    else:
        with open_output(OUTPUT.value) as output:
            translate_lines(translator, lines, output, scores)


if __name__ == "__main__":
    command_line.run_main(main, ("RUN [FILE] ...",))
