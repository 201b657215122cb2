"""Continues prompts with a language model, or draws captions with a text-to-image model.

    python experiments/generate.py runs/python --prompt="def main(" --max_tokens=300     # streams
    python experiments/generate.py runs/python prompts.txt --n_best=3 --output=out.txt  # a prompt a line, in batches
    python experiments/generate.py runs/python                                          # type prompts, Ctrl-D to leave
    python experiments/generate.py runs/shapes --text="two small red circles left of a large blue square" --n_best=4
    python experiments/generate.py runs/shapes captions.txt --guidance=2 --candidates=16 --rerank=caption --output=out

A streamed continuation may be longer than the model's context. From a file, prompts of any lengths share batches, and
the output has a row of line number, log-probability and text for each continuation, in JSON. Images are PNG files in
the folder --output (RUN/images if not given), with a grid of them all and a list. Settings that are not given are the
run's own.
"""

import sys
from pathlib import Path
from typing import Any

from absl import flags

from experiments import command_line, decoding_flags
from experiments.decoding_flags import decoding_overrides, define_decoding_flags
from transformer_jax.errors import UserError
from transformer_jax.host import prepare_cpu

PROMPT = flags.DEFINE_string("prompt", None, "language models: text to continue; may be empty")
MAX_TOKENS = flags.DEFINE_integer("max_tokens", None, "language models: most tokens of a continuation", lower_bound=1)
TEXT = flags.DEFINE_multi_string("text", None, "text to image: a caption to draw; may be given several times")
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, a step, average:N or ema")
OUTPUT = flags.DEFINE_string("output", None, "file or, for images, folder to write")
define_decoding_flags()
flags.adopt_module_key_flags(decoding_flags)
OWN = {"language_model": (PROMPT, MAX_TOKENS), "text_to_image": (TEXT,)}


def main(arguments: list[str]) -> None:
    prepare_cpu()
    from transformer_jax.analysis.run import load_run, require_family
    from transformer_jax.training.loop import enable_compilation_cache

    path, *files = arguments
    run = load_run(path, CHECKPOINT.value)
    if run.config.family not in OWN:
        require_family(" or ".join(OWN), run.config)
    for family, own in OWN.items():
        for flag in own:
            if family != run.config.family and flag.value is not None:
                raise UserError(f"--{flag.name} is for {family}, but {path} is of the family {run.config.family}.")
    enable_compilation_cache()
    settings = decoding_overrides(run.config)
    if run.config.family == "text_to_image":
        draw(run, files, settings)
    else:
        write(run, files, settings)


def write(run: Any, files: list[str], settings: dict[str, Any]) -> None:
    from transformer_jax.analysis.generation import continue_lines, interact, stream_to
    from transformer_jax.decoding.lines import open_output, read_lines

    if MAX_TOKENS.value:
        settings["max_tokens"] = MAX_TOKENS.value
    lines = read_lines(files, sys.stdin.buffer)
    if PROMPT.value is not None:
        with open_output(OUTPUT.value) as output:
            stream_to(run, PROMPT.value, output, **settings)
    elif not files and OUTPUT.value is None and sys.stdin.isatty():
        interact(run, **settings)
    else:
        with open_output(OUTPUT.value) as output:
            continue_lines(run, lines, output, **settings)


def draw(run: Any, files: list[str], settings: dict[str, Any]) -> None:
    from transformer_jax.analysis.image_generation import interact, write_images
    from transformer_jax.decoding.lines import read_lines

    folder = Path(OUTPUT.value) if OUTPUT.value else run.directory.inside("images")
    if not TEXT.value and not files and sys.stdin.isatty():
        return interact(run, folder, **settings)
    captions = TEXT.value or list(read_lines(files, sys.stdin.buffer))
    for file in write_images(run, captions, folder, **settings):
        print(file)


if __name__ == "__main__":
    command_line.run_main(main, ("RUN [FILE] ...",))
