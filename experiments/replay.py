"""Makes a step of a run again from its replay bundle, and tells what is wrong in it.

    python experiments/replay.py runs/multi30k-tiny --step=1234

A run that stops because of its steps keeps the last of them in RUN/replay/STEP. Nothing in the run is changed.
"""

from absl import flags

from experiments import command_line
from transformer_jax.errors import UserError
from transformer_jax.host import prepare_cpu
from transformer_jax.run_directory import RunDirectory

STEP = flags.DEFINE_integer("step", None, "which step; default: the newest that was kept")


def main(arguments: list[str]) -> None:
    run = RunDirectory.open(arguments[0])
    prepare_cpu()
    from transformer_jax.training.loop import enable_compilation_cache
    from transformer_jax.training.reproduction import format_reproduction, reproduce
    from transformer_jax.training.saved_steps import SavedSteps

    newest = SavedSteps(run.replay).latest_step()
    if newest is None:
        raise UserError(f"{run.path} keeps no step to make again: it has not been stopped by its guard.")
    enable_compilation_cache()
    print(format_reproduction(reproduce(run, STEP.value if STEP.value is not None else newest)))


if __name__ == "__main__":
    command_line.run_main(main, ("RUN",))
