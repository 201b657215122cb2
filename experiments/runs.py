"""What runs there are, and what became of them.

    python experiments/runs.py list [FOLDER] [--sort=best] [--format=json]   # default folder: runs
    python experiments/runs.py diff runs/a runs/b                            # config, environment, outcome
    python experiments/runs.py show runs/a                                   # everything about one
    python experiments/runs.py tail runs/a [--follow]                        # its latest metrics

Nothing is changed and no checkpoint is loaded: it is safe and quick beside runs that are being trained.
"""

from pathlib import Path
from typing import Any

from absl import flags

from experiments import command_line
from transformer_jax.errors import UserError

FORMAT: flags.FlagHolder[Any] = flags.DEFINE_enum("format", "table", ["table", "json", "csv"], "list: how to print")
SORT: flags.FlagHolder[Any] = flags.DEFINE_enum(
    "sort", "path", ["path", "best", "test", "started", "time"], "list: the best, newest … first"
)
LINES = flags.DEFINE_integer("lines", 10, "tail: how many", lower_bound=1)
FOLLOW = flags.DEFINE_bool("follow", False, "tail: go on until the run ends")
USES = {"list": ((0, 1), "list [FOLDER]"), "diff": ((2, 2), "diff A B"), "show": ((1, 1), "show RUN")}
USES["tail"] = ((1, 1), "tail RUN")
OPTIONS = {"format": "list", "sort": "list", "lines": "tail", "follow": "tail"}


def main(arguments: list[str]) -> None:
    command, *paths = arguments
    allowed, _ = USES.get(command, ((1, 0), ""))
    if not allowed[0] <= len(paths) <= allowed[1]:
        wanted = ", ".join(use for _, use in USES.values())
        raise UserError(f"{' '.join(arguments)}: wanted is one of: {wanted}.")
    for name, owner in OPTIONS.items():
        if flags.FLAGS[name].present and command != owner:
            raise UserError(f"--{name} is an option of {owner}, and {command} has no such option; leave it away.")
    from transformer_jax.analysis import runs, runs_report

    if command == "list":
        folder = Path(*paths) if paths else Path("runs")
        summaries = runs_report.sort_summaries(map(runs.summarise_run, runs.find_runs(folder)), SORT.value)
        listed = runs_report.format_list(summaries, FORMAT.value, folder)
        print(listed) if isinstance(listed, str) else listed.show()
    elif command == "diff":
        print(runs_report.format_diff(*paths))
    elif command == "show":
        print(runs_report.format_run(*paths))
    else:
        for line in runs_report.tail(paths[0], LINES.value, FOLLOW.value):
            print(line, flush=True)


if __name__ == "__main__":
    command_line.run_main(main, ("list | diff | show | tail, and RUNs ...",))
