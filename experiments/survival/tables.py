"""What was survived, as tables."""

from collections import Counter
from collections.abc import Sequence

from experiments.survival.damages import Damaged
from experiments.survival.kills import GIVE_UP_SECONDS, LEAVE_SECONDS, Tortured


def of_kills(runs: Sequence[Tortured]) -> str:
    """A line for each kind of kill, and one for each number of processes."""
    rows: dict[tuple[int, str, str, str], list[tuple[tuple[int, ...], float]]] = {}
    for run in runs:
        for kill in run.kills:
            who = "-" if run.processes == 1 else "all" if len(kill.targets) == run.processes else "one of them"
            rows.setdefault((run.processes, kill.number.name, who, kill.moment), []).append(
                (kill.statuses, kill.seconds)
            )
    lines = ["processes  signal   sent to      while      kills  longest end  exit statuses"]
    for (processes, name, who, moment), kills in sorted(rows.items()):
        statuses = Counter(" ".join(map(str, sorted(set(statuses)))) for statuses, _ in kills)
        told = ", ".join(f"{status} ({count})" for status, count in statuses.most_common())
        longest = max(seconds for _, seconds in kills)
        lines.append(f"{processes:<9}  {name:<7}  {who:<11}  {moment:<9}  {len(kills):>5}  {longest:>9.1f} s  {told}")
    lines.append("")
    for processes in sorted({run.processes for run in runs}):
        group = [run for run in runs if run.processes == processes]
        kills_ = sum(len(run.kills) for run in group)
        same = sum(run.same for run in group)
        lines.append(
            f"{processes} process(es): {len(group)} runs, {kills_} kills; {same} of {len(group)} ended bit-identical "
            "to the untouched one"
        )
    late = lambda kill: kill.seconds > (GIVE_UP_SECONDS if kill.moment == "starting" else LEAVE_SECONDS)
    slow = [run.path.name for run in runs if any(map(late, run.kills))]
    if slow:
        lines.append(f"took too long to end after a kill: {', '.join(slow)}")
    lines += [f"{run.path.name}: NOT the same: {run.problem}" for run in runs if not run.same]
    return "\n".join(lines)


def of_damages(damaged: Sequence[Damaged]) -> str:
    """A line for each damage."""
    lines = ["damage        files  noticed and named  set aside  ended bit-identical"]
    for damage in dict.fromkeys(one.damage for one in damaged):
        group = [one for one in damaged if one.damage == damage]
        lines.append(
            f"{damage:<12}  {len(group):>5}  {sum(one.named for one in group):>17}  "
            f"{sum(one.set_aside for one in group):>9}  {sum(one.same for one in group):>19}"
        )
    lines += [f"NOT survived: {one.damage} of {one.file}" for one in damaged if not one.survived]
    return "\n".join(lines)
