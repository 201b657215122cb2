"""A run beside what it is exported to: the same sentences, translated by this project, Transformers and CTranslate2."""

import json
import shutil
from pathlib import Path
from typing import Any

from experiments.peers.environments import interpreter, run
from transformer_jax.analysis.run import load_run
from transformer_jax.conversion.runs import export_run
from transformer_jax.data.datasets import load_dataset
from transformer_jax.run_directory import write_json

HERE = Path(__file__).resolve().parent
TOOLKITS = {"transformers": ("marian", None), "ctranslate2": ("ctranslate2", "ctranslate2")}
"""Environment, and format to export to, of each."""
BEAM_SIZES = (1, 5)
Result = dict[str, Any]


def compare_exports(path: str, checkpoint: str, lines: int | None, folder: Path) -> Result:
    """Translations of the validation split by each toolkit and beam size.

    Searches are as alike as they can be: ranked by log-probability, exact, at least one token.

    Raises: UserError for a run that cannot be exported, and where a process fails.
    """
    opened = load_run(path, checkpoint)
    sentences = load_dataset(opened.config.dataset.each_once()).splits["validation"].texts()[0][:lines]
    most = opened.config.decoding.max_target_length
    request = folder / "agreement.json"
    write_json(request, {"sentences": sentences, "beam_sizes": list(BEAM_SIZES), "max_tokens": most})
    search = dict(method="beam", n_best=1, length_penalty=0.0, coverage_penalty=0.0, patience=0.0, min_length=2)
    limits = dict(max_length_factor=0.0, max_length_offset=most)
    own = {str(k): opened.translator(beam_size=k, **search, **limits).translate(sentences) for k in BEAM_SIZES}
    found = {}
    for toolkit, (environment, name) in TOOLKITS.items():
        exported, target = folder / f"exported-{toolkit}", folder / f"{toolkit}-agreement.json"
        shutil.rmtree(exported, ignore_errors=True)
        export_run(opened, exported, name)
        script = [str(interpreter(folder, environment)), str(HERE / "exported_translate.py"), toolkit]
        run([*script, *map(str, (exported, request, target))], folder / f"{toolkit}-agreement.log")
        found[toolkit] = json.loads(target.read_text())
    return {"sentences": sentences, "transformer_jax": own, **found}


def format_agreement(result: Result) -> str:
    """How many translations are equal, and the first three that are not."""
    lines = [f"{len(result['sentences'])} sentences; translations equal to those of this project"]
    for toolkit in TOOLKITS:
        for beam, own in result["transformer_jax"].items():
            pairs = list(zip(result["sentences"], own, result[toolkit][beam], strict=True))
            other = [pair for pair in pairs if pair[1] != pair[2]]
            lines.append(f"{toolkit:14} beam {beam}: {len(pairs) - len(other)} of {len(pairs)}")
            lines += [f"  {sentence}\n    here:  {a}\n    there: {b}" for sentence, a, b in other[:3]]
    return "\n".join(lines)
