"""The study of docs/long_range.md: trains, tests, and reports.

    python experiments/long_range/study.py run runs/long_range                       # the generated tasks
    python experiments/long_range/study.py run runs/long_range --tasks=multi30k --cores=4
    python experiments/long_range/study.py speed runs/long_range                     # on a quiet machine
    python experiments/long_range/study.py report runs/long_range                    # tables; figures in docs/figures

`run` does what is missing and can be interrupted at any time; several processes can do different --tasks in one folder.
Each run is on --cores cores, one unless said otherwise: results are the same to the bit on as many cores only.
"""

from pathlib import Path

from absl import flags

from experiments import command_line
from transformer_jax.errors import UserError
from transformer_jax.host import prepare_cpu

TASKS = flags.DEFINE_list(
    "tasks", ["copy", "reverse", "recall", "agreement", "dependency"], "run: which; also multi30k"
)
NETWORKS = flags.DEFINE_list("networks", ["lstm", "lstm_attention", "transformer"], "run, speed: which")
SEEDS = flags.DEFINE_integer("seeds", 3, "run: runs of the best learning rate", lower_bound=1)
SET = flags.DEFINE_multi_string("set", [], "run: KEY=VALUE for all configs: training.total_steps=300")
CORES = flags.DEFINE_integer("cores", 1, "run: CPU cores of a run", lower_bound=1)
LENGTHS = flags.DEFINE_list("lengths", ["8", "16", "32", "64", "128", "256"], "speed: tokens of a sentence")
ROUNDS = flags.DEFINE_integer("rounds", 3, "speed: how often the networks take turns", lower_bound=1)
FIGURES = flags.DEFINE_string("figures", "docs/figures", "report: folder of the figures")


def main(arguments: list[str]) -> int:
    action, folder = arguments[0], Path(arguments[1])
    if action not in ("run", "speed", "report"):
        raise UserError(f"{action!r} is no action; wanted: run, speed or report, and a folder.")
    if action == "run":
        prepare_cpu(CORES.value)
        from experiments.long_range import trials

        for name, given, known in (("tasks", TASKS.value, trials.TASKS), ("networks", NETWORKS.value, trials.NETWORKS)):
            for item in given:
                if item not in known:
                    raise UserError(f"--{name}: there is no {item!r}; known: {', '.join(known)}.")
        try:
            for line in trials.run_study(folder, TASKS.value, NETWORKS.value, SEEDS.value, SET.value):
                print(line, flush=True)
        except KeyboardInterrupt:
            print("Interrupted and saved. The same command continues from there.")
            return command_line.INTERRUPTED
    elif action == "speed":
        prepare_cpu()
        from experiments.long_range.speed import measure_speed

        for line in measure_speed(folder, NETWORKS.value, [int(n) for n in LENGTHS.value], ROUNDS.value):
            print(line, flush=True)
    else:
        from experiments.long_range.report import write_report

        print(write_report(folder, Path(FIGURES.value)))
    return 0


if __name__ == "__main__":
    command_line.run_main(main, ("ACTION", "FOLDER"))
