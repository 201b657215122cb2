"""What does each ingredient of a translation config bring? Every one taken away or put in, by validation BLEU.

    python experiments/ablation.py --config=configs/multi30k.py:best --study=studies/ablation --seeds=3
    python experiments/ablation.py --config=configs/multi30k.py:best --study=studies/ablation --settings=base,r-drop

Rows (SETTINGS in ablation_study.py has what each sets; those that set what the config has already are left out):
subword sampling, vocabulary size, R-Drop and SimCut, label smoothing, schedule, optimizer, a moving average of the
weights, positions, the feed-forward unit (with the base's d_ff, of which a gated one has three matrices, not two),
layers of encoder and decoder, placement and kind of the norm, each kind of dropout, pretraining in both directions with
the same number of steps in all, distillation from the base's runs together, back-translation by as many runs of the
other direction, and these two together (data diversification, Nguyen et al. 2020). Apart from these, with the runs of
the base: the last weights, the mean of eight checkpoints, an ensemble of the seeds, and minimum-Bayes-risk decoding of
samples, of a beam, and of the samples of all seeds.

All else is as in the base: an optimizer or a schedule is tried at the learning rate of the base, not at its own best.
Every run is an ordinary one, in STUDY/runs. Interrupted, the same command continues; what is done is not done again.
Several processes can make different --settings in one study, `base` first. Perplexities, of the references, compare
only with the same pieces; there seeds hardly differ, while BLEU may by half a point and more. The table, as far as it
is known, is in table.md and table.json, and a figure of the differences in differences.png. The test split is never
read.
"""

from absl import flags

from experiments import command_line
from transformer_jax.host import prepare_cpu

CONFIG = command_line.define_config()
STUDY = flags.DEFINE_string("study", None, "folder of the study", required=True)
SEEDS = flags.DEFINE_integer("seeds", 3, "runs of each setting: config.seed, config.seed + 1, …", lower_bound=1)
SETTINGS = flags.DEFINE_list("settings", None, "which rows to make; default: all that apply")


def main(arguments: list[str]) -> None:
    del arguments
    prepare_cpu()
    from experiments.ablation_study import Study

    study = Study(STUDY.value, CONFIG.value, SEEDS.value, SETTINGS.value)
    for name in study.names:
        study.make(name)
    for table in study.write_report():
        table.show()


if __name__ == "__main__":
    command_line.run_main(main)
