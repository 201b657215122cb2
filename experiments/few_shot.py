"""Asks a language model the questions of a file, after solved examples, and takes the likeliest answers.

    python experiments/few_shot.py runs/python task.jsonl --shots=5

A line of the file is {"prompt": "2 + 2 =", "choices": [" 4", " 5"], "answer": 0}. Shots are drawn from the other items,
or from --examples. Accuracy is by the likelihood of a choice as a whole, per token, per byte, and against its
likelihood without the prompt; one record of them is written into the run.
"""

from absl import flags

from experiments import command_line
from transformer_jax.host import prepare_cpu

SHOTS = flags.DEFINE_integer("shots", 0, "solved examples before each question", lower_bound=0)
EXAMPLES = flags.DEFINE_string("examples", None, "file of the examples; the other items if not given")
SEED = flags.DEFINE_integer("seed", 0, "of the choice of examples")
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, a step, average:N or ema")


def main(arguments: list[str]) -> None:
    prepare_cpu()
    from transformer_jax.analysis.few_shot import evaluate_few_shot, format_few_shot
    from transformer_jax.analysis.run import load_run, require_family
    from transformer_jax.training.loop import enable_compilation_cache

    run = load_run(arguments[0], CHECKPOINT.value)
    require_family("language_model", run.config)
    enable_compilation_cache()
    record = evaluate_few_shot(run, arguments[1], SHOTS.value, EXAMPLES.value, SEED.value)
    print(format_few_shot(record))
    print(f"record: {record['file']}")


if __name__ == "__main__":
    command_line.run_main(main, ("RUN", "TASK.jsonl"))
