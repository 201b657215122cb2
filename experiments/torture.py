"""Kills tiny training runs at random moments, and damages their checkpoints; every run must end as if nothing was.

    python experiments/torture.py                              # what `make torture` does: 100 kills, 1 and 2 processes
    python experiments/torture.py --kills=10 --processes=1

SIGKILL and SIGTERM, while starting, training and saving. A killed run is started again by the same command, and in
the end compared with one that nobody touched: every array of every checkpoint bit for bit, and every metric that is
no time. Then each file of a checkpoint is damaged in three ways. Exits with status 1 when anything did not survive.
"""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from absl import flags

from experiments import command_line
from transformer_jax.errors import UserError

KILLS = flags.DEFINE_integer("kills", 100, "kills in all, shared among the process counts", lower_bound=1)
PROCESSES = flags.DEFINE_list("processes", ["1", "2"], "how many processes a run has: one or several numbers")
DAMAGE = flags.DEFINE_bool("damage", True, "damage the files of a checkpoint too")
SEED = flags.DEFINE_integer("seed", 0, "of the random moments")
PARALLEL = flags.DEFINE_integer("parallel", 2, "runs at a time", lower_bound=1)
WORKDIR = flags.DEFINE_string("workdir", "runs/torture", "folder for all of it; what is there of an earlier one goes")
MARK = ".torture"


def main(arguments: list[str]) -> int:
    from experiments.survival import damages, kills, tables

    folder = Path(WORKDIR.value).absolute()
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise UserError(f"{folder} is not empty and no earlier torture. Choose another --workdir.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    counts = [int(count) for count in PROCESSES.value]
    with ThreadPoolExecutor(PARALLEL.value) as pool:
        untouched = kills.references(folder, counts, pool)
        killed = kills.torture(folder, untouched, KILLS.value, SEED.value, pool)
        print(tables.of_kills(killed), flush=True)
        sound = all(run.same for run in killed)
        if DAMAGE.value:
            damaged = damages.torture(folder, untouched[counts[0]], pool)
            print(tables.of_damages(damaged), flush=True)
            sound = sound and all(one.survived for one in damaged)
    print("Everything survived." if sound else "NOT everything survived; the runs are in " + str(folder))
    return 0 if sound else 1


if __name__ == "__main__":
    sys.setswitchinterval(0.001)  # kills are aimed at moments of milliseconds
    command_line.run_main(main)
