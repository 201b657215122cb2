"""Does pretraining help to tell whether a sentence about a film is positive? From scratch against pretrained.

    python experiments/polarity.py --data=FOLDER --study=studies/polarity
    python experiments/polarity.py --data=FOLDER --study=studies/polarity --cells=scratch:1.0,scratch:0.1   # a part

FOLDER has `movie_reviews`, `multi30k` and `tatoeba_de_en`. One masked language model is trained on their English text
without labels (of the reviews, the training part alone). Then, with all, a tenth and a hundredth of the labels, a
classifier of the same size is trained from scratch and from that model. Both sides have the same settings to choose
from, by accuracy on validation with other seeds; then each is trained with five seeds, and scored once on the test.

Every run is an ordinary one, in the study's folder. Interrupted, the same command continues; what is done is not done
again. The table, as far as it is known, is in table.md and table.json.
"""

from absl import flags

from experiments import command_line
from transformer_jax.errors import UserError
from transformer_jax.host import prepare_cpu

DATA = flags.DEFINE_string("data", None, "folder with movie_reviews, multi30k and tatoeba_de_en", required=True)
STUDY = flags.DEFINE_string("study", "studies/polarity", "folder of the study")
PRETRAINING_STEPS = flags.DEFINE_integer("pretraining_steps", 12_000, "of 32 rows of 64 tokens", lower_bound=1)
CELLS = flags.DEFINE_list("cells", None, "what of the table to make, as SIDE:SHARE; default all")


def main(arguments: list[str]) -> None:
    prepare_cpu()
    from experiments.polarity_study import SHARES, SIDES, Study

    known = [f"{side}:{share}" for side in SIDES for share in SHARES]
    chosen = CELLS.value or known
    if unknown := sorted(set(chosen) - set(known)):
        raise UserError(f"--cells: there is no {unknown[0]}; known: {', '.join(known)}.")
    study = Study(STUDY.value, DATA.value, PRETRAINING_STEPS.value)
    for cell in chosen:
        side, _, share = cell.partition(":")
        study.make(side, float(share))
    print(study.write_table())


if __name__ == "__main__":
    command_line.run_main(main, ())
