"""Measures what checkpoints with digests and the guard against bad steps cost, as a share of step time.

    python experiments/survival_cost.py --config=configs/multi30k.py:tiny

Nothing is kept of what is trained. Wants a quiet machine: the shares are differences of a few parts in a thousand.
"""

from pathlib import Path

from absl import flags

from experiments import command_line
from transformer_jax.host import prepare_cpu

CONFIG = command_line.define_config()
ROUNDS = flags.DEFINE_integer("rounds", 7, "pairs of windows with and without", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 40, "steps in a window", lower_bound=2)
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write the result to")


def main(arguments: list[str]) -> None:
    prepare_cpu()
    from experiments.survival.cost import format_result, measure
    from transformer_jax.run_directory import write_json
    from transformer_jax.training.loop import enable_compilation_cache

    enable_compilation_cache()
    result = measure(CONFIG.value, ROUNDS.value, STEPS.value)
    print(format_result(result))
    if OUTPUT.value:
        write_json(Path(OUTPUT.value), result)


if __name__ == "__main__":
    command_line.run_main(main)
