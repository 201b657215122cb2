"""Writes a run for Transformers or CTranslate2, and makes a run of a checkpoint that Transformers wrote.

    python experiments/convert.py export runs/multi30k-tiny --to=exported            # the format that suits the run
    python experiments/convert.py export runs/multi30k-tiny --to=fast --format=ctranslate2
    python experiments/convert.py import opus-mt-en-de --workdir=runs/opus           # a downloaded checkpoint
    python experiments/translate.py runs/opus news.en
    python experiments/convert.py agree runs/multi30k-tiny --lines=200               # the same translations there?

Formats: marian (layers normalised after sublayers) and pegasus (before), gpt2 and bert, as Hugging Face folders with
safetensors and tokenizer files, and lstm, with PyTorch's names, in both directions; ctranslate2, written only. What a
format cannot express is an error that says so before anything is written. Nothing that is read is executed. `agree`
exports the run and translates the validation split, beam 1 and 5, in Transformers and in CTranslate2, each in an
environment of its own that is made on first use. See docs/convert.md.
"""

from absl import flags

from experiments import command_line
from transformer_jax.errors import UserError
from transformer_jax.host import prepare_cpu

TO = flags.DEFINE_string("to", None, "export: the folder to write, new or empty")
FORMAT = flags.DEFINE_string(
    "format", None, "export: marian, pegasus, gpt2, bert, lstm or ctranslate2; default: what suits the run"
)
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "export, agree: best, latest, a step, average:N or ema")
LINES = flags.DEFINE_integer("lines", None, "agree: only the first lines of the split", lower_bound=1)
PEERS = flags.DEFINE_string("peers", None, "agree: folder of the other toolkits; default: in the cache folder")
WORKDIR = flags.DEFINE_string("workdir", None, "import: the run directory to make, new or empty")


def main(arguments: list[str]) -> None:
    prepare_cpu()
    from transformer_jax.analysis.run import load_run
    from transformer_jax.conversion.runs import export_run, import_folder
    from transformer_jax.families.registry import find_family

    what, path = arguments
    if what == "export" and TO.value is not None:
        written = export_run(load_run(path, CHECKPOINT.value), TO.value, FORMAT.value)
        print(f"{TO.value}: {written.format}, {', '.join(written.files)}")
        for note in written.notes:
            print(f"note: {note}")
    elif what == "import" and WORKDIR.value is not None:
        family = import_folder(path, WORKDIR.value, command_line.default_config)
        print(f"{WORKDIR.value}: a run of the family {family}")
        for command in find_family(family).commands:
            print(f"Next: python {command} {WORKDIR.value}")
    elif what == "agree":
        from experiments.peers import agreement, environments

        folder = environments.work_folder(PEERS.value)
        print(agreement.format_agreement(agreement.compare_exports(path, CHECKPOINT.value, LINES.value, folder)))
    else:
        raise UserError(
            f"{' '.join(arguments)}: wanted is export RUN --to=FOLDER, import FOLDER --workdir=RUN, or agree RUN."
        )


if __name__ == "__main__":
    command_line.run_main(main, ("export|import|agree", "RUN|FOLDER"))
