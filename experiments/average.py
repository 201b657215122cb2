"""Averages the newest checkpoints of a run into a run of its own, which evaluate, translate and load_run open.

    python experiments/average.py runs/wmt14-base --last=5 --output=runs/wmt14-base-averaged

The output has the config, the tokenizer, one checkpoint with the mean of the parameters, and averaged.json, which says
of what. Without a new directory, --checkpoint=average:5 of the other commands gives the same parameters.
"""

from absl import flags

from experiments import command_line
from transformer_jax.host import prepare_cpu

LAST = flags.DEFINE_integer("last", 5, "how many checkpoints", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", None, "directory of the averaged run, new or empty", required=True)


def main(arguments: list[str]) -> None:
    prepare_cpu()
    from transformer_jax.analysis.averaging import save_average
    from transformer_jax.analysis.run import load_run

    run = load_run(arguments[0], f"average:{LAST.value}")
    save_average(run, OUTPUT.value)
    print(f"{OUTPUT.value}: the mean of the checkpoints {', '.join(map(str, run.steps))}")
    print(f"Next: python experiments/evaluate.py {OUTPUT.value}")


if __name__ == "__main__":
    command_line.run_main(main, ("RUN",))
