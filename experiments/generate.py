"""Continues prompts with a language model: as you watch, from a file or pipe, or what is typed.

    python experiments/generate.py runs/python --prompt="def main(" --max_tokens=300     # streams
    python experiments/generate.py runs/python prompts.txt --n_best=3 --output=out.txt  # a prompt a line, in batches
    python experiments/generate.py runs/python                                          # type prompts, Ctrl-D to leave

A streamed continuation may be longer than the model's context. From a file, prompts of any lengths share batches, and
the output has a row of line number, log-probability and text for each continuation, in JSON. Settings that are not
given are the run's own.
"""

import sys

from absl import flags

from experiments import command_line, decoding_flags
from experiments.decoding_flags import decoding_overrides, define_decoding_flags
from transformer_jax.host import prepare_cpu

PROMPT = flags.DEFINE_string("prompt", None, "text to continue; may be empty")
MAX_TOKENS = flags.DEFINE_integer("max_tokens", None, "most tokens of a continuation", lower_bound=1)
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, a step, average:N or ema")
OUTPUT = flags.DEFINE_string("output", None, "file to write; standard output if not given")
define_decoding_flags()
flags.adopt_module_key_flags(decoding_flags)


def main(arguments: list[str]) -> None:
    prepare_cpu()
    from transformer_jax.analysis.generation import continue_lines, interact, stream_to
    from transformer_jax.analysis.run import load_run, require_family
    from transformer_jax.decoding.lines import open_output, read_lines
    from transformer_jax.training.loop import enable_compilation_cache

    path, *files = arguments
    lines = read_lines(files, sys.stdin.buffer)
    run = load_run(path, CHECKPOINT.value)
    require_family("language_model", run.config)
    enable_compilation_cache()
    settings = decoding_overrides(run.config)
    if MAX_TOKENS.value:
        settings["max_tokens"] = MAX_TOKENS.value
    if PROMPT.value is not None:
        with open_output(OUTPUT.value) as output:
            stream_to(run, PROMPT.value, output, **settings)
    elif not files and OUTPUT.value is None and sys.stdin.isatty():
        interact(run, **settings)
    else:
        with open_output(OUTPUT.value) as output:
            continue_lines(run, lines, output, **settings)


if __name__ == "__main__":
    command_line.run_main(main, ("RUN [FILE] ...",))
