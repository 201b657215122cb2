"""Writes a page in which a reader sees where each layer and head looks, and what else the model might have said.

    python experiments/analyze.py runs/phrases --text "March 3, 2021" --out report.html
    python experiments/analyze.py runs/phrases --file sentences.en --out report.html    # a text a line, with a chooser
    python experiments/analyze.py runs/python --text "def main(" --max_tokens=20 --out report.html

The page is one file that needs no network: it can be sent, kept and opened anywhere. Decoding settings that are not
given are the run's own; the search is always beam search, and all of its beam is shown unless --n_best says otherwise.
"""

import sys
from pathlib import Path

from absl import flags

from experiments import command_line, decoding_flags
from experiments.decoding_flags import decoding_overrides, define_decoding_flags
from transformer_jax.errors import UserError
from transformer_jax.host import prepare_cpu

TEXT = flags.DEFINE_multi_string("text", [], "what to analyse; may be given several times")
FILE = flags.DEFINE_multi_string("file", [], "file of texts, one a line; empty lines are left out")
OUT = flags.DEFINE_string("out", "report.html", "the page to write")
MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", None, "language models: most tokens to write after the text", lower_bound=0
)
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, a step, average:N or ema")
define_decoding_flags()
flags.adopt_module_key_flags(decoding_flags)


def main(arguments: list[str]) -> None:
    prepare_cpu()
    from transformer_jax.analysis.run import load_run
    from transformer_jax.analysis.spotlight.examples import examine
    from transformer_jax.analysis.spotlight.page import render
    from transformer_jax.decoding.lines import read_lines
    from transformer_jax.run_directory import write_text

    page = Path(OUT.value)
    if page.is_dir():
        raise UserError(f"--out={page} is a folder; name a file, such as {page / 'report.html'}.")
    lines = read_lines(FILE.value, sys.stdin.buffer) if FILE.value else []
    texts = [*TEXT.value, *(line for line in lines if line.strip())]
    if not texts:
        raise UserError('There is nothing to analyse: give --text "…", or --file with a text a line.')
    run = load_run(arguments[0], CHECKPOINT.value)
    settings = decoding_overrides(run.config)
    if MAX_TOKENS.value is not None:
        settings["max_tokens"] = MAX_TOKENS.value
    write_text(page, render(examine(run, texts, **settings)))
    print(f"{page}: {len(texts)} text(s), {page.stat().st_size / 1e6:.1f} MB; open it in a browser")


if __name__ == "__main__":
    command_line.run_main(main, ("RUN",))
