"""Trains the best point of a study again, with several seeds: the score to report, for the sweep's own is a choice.

    python experiments/sweep_retrain.py sweeps/rate --seeds=5 --workers=4
    python experiments/sweep_retrain.py sweeps/rate --trial=7 --seeds=3

The first seeds are the sweep's; on CPU they come out the same, bit for bit. The others were not chosen by their luck,
so the mean is taken over them. The same command continues.
"""

import statistics

from absl import flags

from experiments import command_line

SEEDS = flags.DEFINE_integer("seeds", 3, "how many runs", lower_bound=1)
TRIAL = flags.DEFINE_integer("trial", None, "the trial to repeat; default: the best")
WORKERS = flags.DEFINE_integer("workers", 1, "worker processes on this machine", lower_bound=1)


def main(arguments: list[str]) -> int:
    from experiments.sweeping.commands import run_study, say_how_it_stands
    from experiments.sweeping.retraining import choose, compared, retraining
    from experiments.sweeping.study import Study
    from experiments.sweeping.worker import describe

    study = Study.open(arguments[0])
    point = choose(study, TRIAL.value)
    again = retraining(study, point, SEEDS.value)
    print(f"trial {point.number}: {describe(point.overrides)}\nruns: {again.folder}/trials", flush=True)
    if not run_study(again, WORKERS.value):
        print("Interrupted and saved. The same command continues from there.")
        return command_line.INTERRUPTED

    def finish() -> None:
        rows = compared(point, again)
        for row in rows:
            said = "not in the sweep"
            if row.before is not None:
                same = "identical" if row.before == row.after else "NOT identical"
                said = f"in the sweep {_text(row.before)}: {same}"
            print(f"seed {row.seed}: {_text(row.after)}   ({said})")
        for name, values in (
            ("seeds of the sweep", [row.after for row in rows if row.before]),
            ("new seeds", [row.after for row in rows if not row.before]),
        ):
            if len(values) > 1:
                columns = list(zip(*values, strict=True))
                spread = [f"{statistics.fmean(c):.6g} ± {statistics.stdev(c):.3g}" for c in columns]
                print(f"{len(values)} {name}: {', '.join(spread)}  ({', '.join(study.settings.objectives)})")

    say_how_it_stands(again, finish)
    return 0


def _text(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


if __name__ == "__main__":
    command_line.run_main(main, ("STUDY",))
