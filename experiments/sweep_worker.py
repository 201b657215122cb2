"""One more worker for a study that experiments/sweep.py started: on any machine that sees its folder.

    python experiments/sweep_worker.py sweeps/rate
    sbatch --array=1-8 --gpus=1 --wrap="python experiments/sweep_worker.py sweeps/rate"

It takes a free GPU, or free CPU cores, and trains one trial after another until none is left. Kill it whenever you
like: SIGTERM saves, and the next worker goes on with its trial.
"""

from experiments import command_line


def main(arguments: list[str]) -> int:
    from experiments.sweeping.commands import run_study, say_how_it_stands
    from experiments.sweeping.study import Study

    study = Study.open(arguments[0])
    if not run_study(study, 1):
        print("Interrupted and saved. The next worker goes on with the trial.")
        return command_line.INTERRUPTED
    say_how_it_stands(
        study, lambda: print(f"The study is complete. Next: python experiments/sweep_report.py {study.folder}")
    )
    return 0


if __name__ == "__main__":
    command_line.run_main(main, ("STUDY",))
