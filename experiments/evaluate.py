"""Scores a run on a split of its dataset, or on files, and writes one record into the run.

    python experiments/evaluate.py runs/multi30k-tiny                       # the test split
    python experiments/evaluate.py runs/multi30k-tiny --split=validation --checkpoint=average:8 --beam_size=1
    python experiments/evaluate.py runs/a --files=news.en,news.de           # or one TSV file
    python experiments/evaluate.py runs/a --ensemble=runs/b,runs/c          # probabilities averaged token by token
    python experiments/evaluate.py runs/a --method=sample --rerank=chrf --candidates=32        # minimum Bayes risk
    python experiments/evaluate.py runs/shakespeare --split=validation --stride=1      # a language model

What is measured depends on the family: BLEU of translations, perplexity and bits per byte of text. Settings that are
not given are the run's own.
"""

import sys

from absl import flags

from experiments import command_line
from experiments.decoding_flags import decoding_overrides, define_decoding_flags, define_ensemble
from transformer_jax.errors import UserError
from transformer_jax.host import prepare_cpu

SPLIT = flags.DEFINE_string("split", "test", "train, validation or test")
FILES = flags.DEFINE_string(
    "files", None, "instead of a split: SOURCE,REFERENCE line-aligned, or PAIRS.tsv, or texts; plain or .gz"
)
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, a step, average:N or ema")
ENSEMBLE, POOL = define_ensemble()
DISTRIBUTED = command_line.define_distributed()
STRIDE = flags.DEFINE_integer("stride", None, "language models: tokens by which windows advance", lower_bound=1)
define_decoding_flags()


def main(arguments: list[str]) -> None:
    if FILES.value is not None and SPLIT.present:
        raise UserError(f"--files and --split={SPLIT.value}: give one of them.")
    prepare_cpu()
    from transformer_jax import distributed
    from transformer_jax.analysis.ensemble import open_ensemble
    from transformer_jax.training.loop import enable_compilation_cache

    distributed.start(DISTRIBUTED.value)
    run = open_ensemble(arguments[0], CHECKPOINT.value, ENSEMBLE.value, POOL.value)
    enable_compilation_cache()
    windows = {"stride": STRIDE.value} if STRIDE.value else {}
    if distributed.is_main() and not sys.stderr.isatty():
        print(f"scoring {run.directory.path} on {FILES.value or SPLIT.value}", file=sys.stderr, flush=True)
    record, text = run.evaluate(SPLIT.value, FILES.value, **decoding_overrides(run.config), **windows)
    if distributed.is_main():
        print(text)
        if translations := record.get("translations"):
            print(f"translations: {run.directory.path / translations}")
        print(f"record: {record['file']}")


if __name__ == "__main__":
    command_line.run_main(main, ("RUN",))
