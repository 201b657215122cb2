"""Trains a config many times over, in search of its best settings, or with several seeds.

    python experiments/sweep.py --study=sweeps/rate --config=configs/phrases.py \\
        --grid=optimizer.peak_learning_rate=1e-3,3e-3 --seeds=3 --workers=4
    python experiments/sweep.py --study=sweeps/rate --config=configs/phrases.py --sampler=tpe --pruner=median \\
        --space=optimizer.peak_learning_rate=1e-4..1e-2:log --space=model.num_heads=2,4,8 --points=30
    python experiments/sweep_worker.py sweeps/rate     # one more worker, on any machine that sees the folder

Without --grid and --space, search_space(trial) of the config file says what varies; without that, only the seeds do.
Each trial is a run in STUDY/trials. Ctrl-C saves and the same command continues; a worker that is killed loses
nothing, for the next one goes on with its trial. At the end the report is in STUDY/report.
"""

from absl import flags
from ml_collections import config_flags

from experiments import command_line
from transformer_jax.host import available_cores

STUDY = flags.DEFINE_string("study", None, "folder of the study", required=True)
CONFIG = command_line.define_config()
GRID = flags.DEFINE_multi_string("grid", [], "KEY=A,B,C: every combination of such lists is tried")
SPACE = flags.DEFINE_multi_string("space", [], "KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=A,B,C: the sampler chooses")
SAMPLER = flags.DEFINE_enum(
    "sampler", None, ["tpe", "random", "quasi_random", "grid"], "who chooses the points; default: tpe, or grid"
)
POINTS = flags.DEFINE_integer("points", None, "how many points are tried, 20 if not given; a grid has its own number")
SEEDS = flags.DEFINE_integer("seeds", 1, "trials of each point, with config.seed, config.seed + 1, …", lower_bound=1)
PRUNER = flags.DEFINE_enum("pruner", "none", ["none", "median", "hyperband"], "who ends bad trials early")
OBJECTIVES = flags.DEFINE_list("objectives", ["quality"], "of quality, time (of training) and parameters")
STORAGE = flags.DEFINE_string("storage", "journal.log", "for many machines: a database URL, or grpc://HOST:PORT")
WORKERS = flags.DEFINE_integer("workers", 1, "processes here; 0 only starts the study, for workers elsewhere", 0)
CORES = flags.DEFINE_integer("cores", None, "CPU cores of a worker; default: all there are, divided by --workers")


def main(arguments: list[str]) -> int:
    from experiments.sweeping.commands import run_study, say_how_it_stands
    from experiments.sweeping.settings import new_settings
    from experiments.sweeping.study import Study

    settings = new_settings(
        STUDY.value,
        config_flags.get_config_filename(flags.FLAGS["config"]),
        CONFIG.value,
        GRID.value,
        SPACE.value,
        SAMPLER.value,
        POINTS.value,
        storage=STORAGE.value,
        pruner=PRUNER.value,
        objectives=tuple(OBJECTIVES.value),
        seeds=SEEDS.value,
        cores=CORES.value or max(1, available_cores() // max(1, WORKERS.value)),
    )
    study = Study.create_or_join(STUDY.value, settings)
    if not WORKERS.value:
        print(f"The study is ready. Start workers with: python experiments/sweep_worker.py {study.folder}")
        return 0
    if not run_study(study, WORKERS.value):
        print("Interrupted and saved. The same command continues from there.")
        return command_line.INTERRUPTED

    def finish() -> None:
        from experiments.sweeping.report import write_report

        print(write_report(study))

    say_how_it_stands(study, finish)
    return 0


if __name__ == "__main__":
    command_line.run_main(main)
