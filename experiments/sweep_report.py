"""Writes the report of a study, finished or not: STUDY/report/index.html, which opens without network, and PNGs.

python experiments/sweep_report.py sweeps/rate
"""

from experiments import command_line


def main(arguments: list[str]) -> None:
    from experiments.sweeping.report import write_report
    from experiments.sweeping.study import Study

    print(write_report(Study.open(arguments[0])))


if __name__ == "__main__":
    command_line.run_main(main, ("STUDY",))
