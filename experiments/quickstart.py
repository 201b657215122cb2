"""What `make run` does: trains on the embedded phrases, evaluates, translates, draws attention, says what next.

python experiments/quickstart.py --workdir=runs/phrases
"""

import time
from pathlib import Path

from absl import flags

from experiments import command_line
from transformer_jax.host import prepare_cpu

WORKDIR = flags.DEFINE_string("workdir", "runs/phrases", "folder of the run")
CONFIG_FILE = "configs/phrases.py"
EXAMPLES = 6


def main(arguments: list[str]) -> int:
    prepare_cpu()
    from transformer_jax.analysis.interpret.attention import save_attention_figures
    from transformer_jax.analysis.run import load_run
    from transformer_jax.analysis.scores import evaluate_run, format_record
    from transformer_jax.data.datasets import load_dataset
    from transformer_jax.training.loop import train

    workdir, begin = Path(WORKDIR.value), time.monotonic()
    config = Path(__file__).resolve().parents[1] / CONFIG_FILE
    print("1. Training a small Transformer on English-German phrases. Ctrl-C saves; the same command continues.")
    outcome = train(command_line.load_config(str(config)), workdir)
    if not outcome.finished:
        print(f"Interrupted and saved at step {outcome.step}. The same command continues from there.")
        return command_line.INTERRUPTED
    print(f"   The run is complete: {outcome.step} steps.")

    print("\n2. Scoring it on the test phrases, half of which combine values that never meet in training.")
    run = load_run(workdir)
    sources, references = load_dataset(run.config.dataset).splits["test"].texts()
    record = evaluate_run(run, sources, references, {"split": "test", "dataset": run.config.dataset.name})
    print(format_record(record))

    print("\n3. Some of them:")
    chosen = range(0, len(sources), len(sources) // EXAMPLES)[:EXAMPLES]
    translations = (run.directory.path / record["translations"]).read_text(encoding="utf-8").split("\n")
    for i in chosen:
        print(f"   source      {sources[i]}\n   translation {translations[i]}\n   reference   {references[i]}\n")

    shown = max(chosen, key=lambda i: len(sources[i]))
    figures = save_attention_figures(run, sources[shown], translations[shown], folder=workdir / "attention")
    print(f"4. Where each head looks while translating {sources[shown]!r}:")
    print("".join(f"   {path}\n" for path in figures))

    print(
        f"All of it took {time.monotonic() - begin:.0f} s and is in {workdir}:\n"
        f"   config.json environment.json metrics.jsonl checkpoints/ tokenizer/ scores/ translations/ attention/\n"
        "What to type next:\n"
        f"   .venv/bin/python experiments/translate.py {workdir}                  # type phrases, or pipe a file in\n"
        f"   .venv/bin/python experiments/evaluate.py {workdir} --beam_size=1\n"
        f"   .venv/bin/tensorboard --logdir {workdir}                              # after pip install tensorboard\n"
        "   .venv/bin/python experiments/train.py --config=configs/multi30k.py:tiny --workdir=runs/multi30k-tiny"
    )
    return 0


if __name__ == "__main__":
    command_line.run_main(main)
