"""Measures other toolkits beside this one, on the same data, model and machine, in turn.

    python experiments/peers/measure.py train --config=configs/multi30k.py:tiny --seconds=60 --rounds=3
    python experiments/peers/measure.py train --peer=transformer --config=configs/wmt14.py:base
    python experiments/peers/measure.py train --config=configs/language_model.py:shakespeare --seconds=60
    python experiments/peers/measure.py decode runs/multi30k-tiny --beam_size=5 --lines=1000
    python experiments/peers/measure.py load runs/multi30k-tiny --rounds=5
    python experiments/peers/measure.py agree runs/multi30k-tiny --lines=200

`train`: Hugging Face's MarianMT in a plain PyTorch loop, or with --peer=transformer PyTorch's own layers under
torch.compile with its fused attention; ours as the same post-norm model; the same batches. Of a language model: a GPT
in PyTorch, compiled on a GPU, its speed and its validation loss after --seconds of training, the same batches.
`decode`: beam search of the test split by CTranslate2 and JoeyNMT with the run's own weights, as long as the
model likes and with every output forced to one length. BLEU and the share of equal outputs say whether they
compute the same. `load`: opening a run and translating one sentence in a fresh process, against Transformers with
the same weights. `agree`: the run as experiments/convert.py exports it, opened in Transformers and in CTranslate2:
translations of the validation split, beam 1 and 5, against the run's own. Each toolkit runs in a process of its own;
on first use it is installed in an environment of its own in --folder. They see this process's environment variables
and cores. Only `train` uses a GPU, on both sides, and of the peers not MarianMT.
"""

import sys
from pathlib import Path

from absl import flags

from experiments import command_line
from transformer_jax.errors import UserError

CONFIG = command_line.define_config() if "train" in sys.argv else None
PEER = flags.DEFINE_enum("peer", "marian", ["marian", "transformer"], "train: of a translation model, beside what")
SECONDS = flags.DEFINE_float("seconds", 60.0, "train: time measured, for each toolkit in each round")
ROUNDS = flags.DEFINE_integer("rounds", 3, "how often the toolkits take turns", lower_bound=1)
FORCED = flags.DEFINE_integer("forced_tokens", 25, "decode, load: steps every output takes", lower_bound=1)
BEAM = flags.DEFINE_integer("beam_size", None, "decode: default: the run's own", lower_bound=1)
PENALTY = flags.DEFINE_float("length_penalty", None, "decode: default: the run's own", lower_bound=0.0)
REPEATS = flags.DEFINE_integer("repeats", 5, "decode: translations of the split in each round", lower_bound=1)
LINES = flags.DEFINE_integer("lines", None, "decode, agree: only the first lines of the split", lower_bound=1)
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "decode, load, agree: best, latest, a step, average:N or ema")
FOLDER = flags.DEFINE_string("folder", None, "work folder; default: peers in the cache folder")
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write everything measured to")


def main(arguments: list[str]) -> None:
    from experiments.peers import agreement, comparison, language_models, loading
    from transformer_jax.data.cache import cache_directory
    from transformer_jax.run_directory import write_json

    if arguments[0] not in ("train", "decode", "load", "agree") or len(arguments) != (1 if CONFIG is not None else 2):
        raise UserError(f"{' '.join(arguments)}: wanted is train --config=…, decode RUN, load RUN, or agree RUN.")
    folder = Path(FOLDER.value or cache_directory() / "peers").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if CONFIG is not None and CONFIG.value.family == "language_model":
        result = language_models.compare_language_models(CONFIG.value, SECONDS.value, ROUNDS.value, folder)
        print(language_models.format_language_models(result))
    elif CONFIG is not None:
        result = comparison.compare_training(CONFIG.value, PEER.value, SECONDS.value, ROUNDS.value, folder)
        print(comparison.format_training(result))
    elif arguments[0] == "agree":
        result = agreement.compare_exports(arguments[1], CHECKPOINT.value, LINES.value, folder)
        print(agreement.format_agreement(result))
    elif arguments[0] == "load":
        result = loading.compare_loading(arguments[1], CHECKPOINT.value, FORCED.value, ROUNDS.value, folder)
        print(loading.format_loading(result))
    else:
        given = {"beam_size": BEAM.value, "length_penalty": PENALTY.value}
        beam = {name: value for name, value in given.items() if value is not None}
        result = comparison.compare_decoding(
            arguments[1], CHECKPOINT.value, beam, LINES.value, FORCED.value, REPEATS.value, ROUNDS.value, folder
        )
        print(comparison.format_decoding(result))
    if OUTPUT.value:
        write_json(Path(OUTPUT.value), result)


if __name__ == "__main__":
    command_line.run_main(main, ("train | decode RUN | load RUN | agree RUN ...",))
