"""Trains the experiment of a config in a run directory, or continues it.

    python experiments/train.py --config=configs/multi30k.py:tiny --workdir=runs/multi30k-tiny
    python experiments/train.py --config=configs/multi30k.py:tiny --dry-run
    python experiments/train.py --config=configs/wmt14.py:big --dry-run --target=h100:8

Any key of the config can be set on the command line, --config.optimizer.peak_learning_rate=3e-3; configs/default.py
lists and explains them. Ctrl-C saves and exits with status 75; the same command continues where it stopped. --dry-run
prints what the run would be (config, sizes, memory, arithmetic, placement, time), and stops: nothing is written into
the workdir, which need not be given. With --target all but the time is of GPUs that need not be here: XLA compiles for
them, which takes the extra cuda13 or cuda12.
"""

import sys

from absl import flags

from experiments import command_line
from transformer_jax.errors import UserError
from transformer_jax.host import prepare_cpu, prepare_target

CONFIG = command_line.define_config()
DISTRIBUTED = command_line.define_distributed()
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run")
TARGET = command_line.define_target()
DRY_RUN = flags.DEFINE_bool("dry_run", False, "print what the run would be, and stop; also --dry-run")


def main(arguments: list[str]) -> int:
    workdir = WORKDIR.value
    if workdir is None and not DRY_RUN.value:
        raise UserError("--workdir is required.")
    if TARGET.value:
        if not DRY_RUN.value:
            raise UserError("--target goes with --dry-run alone.")
        prepare_target()
    prepare_cpu()
    from transformer_jax import distributed

    distributed.start(DISTRIBUTED.value)
    if workdir is None or DRY_RUN.value:
        from transformer_jax.analysis.plan import make_plan
        from transformer_jax.analysis.plan_report import format_plan

        plan = format_plan(make_plan(CONFIG.value, workdir, TARGET.value))
        if distributed.is_main():
            print(plan)
        return 0
    from transformer_jax.families.registry import find_family
    from transformer_jax.training.loop import train

    outcome = train(CONFIG.value, workdir)
    if not distributed.is_main():
        return 0 if outcome.finished else command_line.INTERRUPTED
    if not outcome.step:
        print(f"{workdir}: interrupted before its first step, with nothing to save. The same command begins anew.")
        return command_line.INTERRUPTED
    state = "finished" if outcome.finished else "interrupted and saved"
    print(f"{workdir}: {state} at step {outcome.step}")
    if not outcome.finished:
        print("The same command continues from there.")
        return command_line.INTERRUPTED
    commands = find_family(CONFIG.value.family).commands
    print("Next: " + "   ".join(f"python {command} {workdir}" for command in commands))
    return 0


if __name__ == "__main__":
    command_line.run_main(main, (), ["--dry_run" if word == "--dry-run" else word for word in sys.argv[1:]])
