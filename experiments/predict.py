"""What an encoder says of texts: labels of sentences or words, or what stands for [MASK].

    python experiments/predict.py runs/reviews new.txt --output=labels.tsv    # a line: the label, its probability, text
    python experiments/predict.py runs/entities < sentences.txt               # a word and its label a line
    echo "The cat sat on the [MASK]." | python experiments/predict.py runs/masked --top=3

A line of the input is a text; of pairs the two texts with a TAB between.
"""

import sys

from absl import flags

from experiments import command_line
from transformer_jax.host import prepare_cpu

CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, a step, average:N or ema")
OUTPUT = flags.DEFINE_string("output", None, "file to write; standard output if not given")
TOP = flags.DEFINE_integer("top", 5, "how many tokens to show for each [MASK]", lower_bound=1)


def main(arguments: list[str]) -> None:
    prepare_cpu()
    from transformer_jax.analysis.predictions import write_predictions
    from transformer_jax.analysis.run import load_run
    from transformer_jax.decoding.lines import open_output, read_lines

    path, *files = arguments
    lines = read_lines(files, sys.stdin.buffer)
    run = load_run(path, CHECKPOINT.value)
    with open_output(OUTPUT.value) as output:
        write_predictions(run, lines, output, TOP.value)


if __name__ == "__main__":
    command_line.run_main(main, ("RUN [FILE] ...",))
