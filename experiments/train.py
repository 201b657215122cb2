"""Trains the experiment of a config in a run directory, or continues it.

    python experiments/train.py --config=configs/multi30k.py:tiny --workdir=runs/multi30k-tiny

Any key can be set on the command line: --config.optimizer.peak_learning_rate=3e-3. Ctrl-C saves and exits with
status 75; the same command continues where it stopped.
"""

from absl import flags

from experiments import command_line
from transformer_jax.host import prepare_cpu

CONFIG = command_line.define_config()
DISTRIBUTED = command_line.define_distributed()
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run", required=True)


def main(arguments: list[str]) -> int:
    prepare_cpu()
    from transformer_jax import distributed
    from transformer_jax.families.registry import find_family
    from transformer_jax.training.loop import train

    distributed.start(DISTRIBUTED.value)
    outcome = train(CONFIG.value, WORKDIR.value)
    if not distributed.is_main():
        return 0 if outcome.finished else command_line.INTERRUPTED
    state = "finished" if outcome.finished else "interrupted and saved"
    print(f"{WORKDIR.value}: {state} at step {outcome.step}")
    if not outcome.finished:
        print("The same command continues from there.")
        return command_line.INTERRUPTED
    commands = find_family(CONFIG.value.family).commands
    print("Next: " + "   ".join(f"python {command} {WORKDIR.value}" for command in commands))
    return 0


if __name__ == "__main__":
    command_line.run_main(main)
