"""Compares groups of runs on a test set: is the difference more than chance, in sentences and in seeds?

    python experiments/compare.py runs/swiglu-* --against runs/base-*
    python experiments/compare.py runs/swiglu-* runs/rotary-* --against runs/base-* --markdown=table.md
    python experiments/compare.py runs/a --against runs/b --files=news.en,news.de --beam_size=1

Runs whose configs differ in nothing but the seed are one system. What a run has not translated yet is translated, and
kept in its scores/ and translations/; the test set is a split of the baseline's dataset. Decoding settings that are not
given are each run's own.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import command_line
from experiments.decoding_flags import decoding_overrides, define_decoding_flags
from transformer_jax.errors import UserError
from transformer_jax.host import prepare_cpu

AGAINST = flags.DEFINE_multi_string("against", None, "the runs of the baseline: seeds of one config")
SPLIT = flags.DEFINE_string("split", "test", "train, validation or test")
FILES = flags.DEFINE_string(
    "files", None, "instead of a split: SOURCE,REFERENCE line-aligned, or PAIRS.tsv; plain or .gz"
)
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, a step, average:N or ema")
CHANGED = flags.DEFINE_integer("changed", 5, "sentences to show that rose, and that fell", lower_bound=0)
JSON = flags.DEFINE_string("json", None, "file to write everything to, as data")
MARKDOWN = flags.DEFINE_string("markdown", None, "file to write the tables to")
define_decoding_flags()


def main(arguments: list[str]) -> None:
    prepare_cpu()
    from transformer_jax.analysis import comparison, comparison_report
    from transformer_jax.run_directory import write_json, write_text
    from transformer_jax.training.loop import enable_compilation_cache

    if not AGAINST.value:
        raise UserError("--against is required: the runs of the baseline.")
    systems = comparison.open_systems(arguments, CHECKPOINT.value)
    baselines = comparison.open_systems(AGAINST.value, CHECKPOINT.value)
    if len(baselines) > 1:
        labels = ", ".join(system.label for system in baselines)
        raise UserError(f"--against has runs of {len(baselines)} configs ({labels}); give the seeds of one.")
    baseline = baselines[0]
    enable_compilation_cache()
    test = comparison.open_test_set(baseline.runs[0], SPLIT.value, FILES.value)
    settings = decoding_overrides(baseline.runs[0].config)
    found = comparison.compare(systems, baseline, test, CHANGED.value, **settings)
    comparison_report.show(found, test)
    if JSON.value:
        write_json(Path(JSON.value), comparison.as_json(found, test))
    if MARKDOWN.value:
        write_text(Path(MARKDOWN.value), comparison_report.markdown(found, test))


def gather(words: Sequence[str], name: str) -> list[str]:
    """Lets a flag take all words up to the next flag, as shells expand "--against runs/base-*"."""
    found: list[str] = []
    taking = False
    for word in words:
        if word == f"--{name}":
            taking = True
        elif word.startswith("-"):
            taking = False
            found.append(word)
        else:
            found.append(f"--{name}={word}" if taking else word)
    return found


if __name__ == "__main__":
    command_line.run_main(main, ("RUN...",), gather(sys.argv[1:], "against"))
