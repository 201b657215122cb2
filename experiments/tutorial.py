# %% [markdown]
"""# Which head aligns numbers, and what breaks without it?

A notebook as a script: open it in an editor that knows `# %%` cells, or run it from the checkout, whole:

    python experiments/tutorial.py

It trains the embedded phrases model (minutes; a run that is there is taken as it is), measures how well each head of
cross-attention aligns words, takes the one that is best at numbers, ablates it, and looks at what becomes wrong.
"""

# %%
import re
import sys
from collections import Counter
from pathlib import Path

from transformer_jax.host import prepare_cpu

WORKDIR, PAIRS = Path("runs/phrases"), 2000
OVERRIDES: list[str] = []  # of the config, such as "training.total_steps=600"

if "--help" in sys.argv:
    print(__doc__)
    sys.exit()
if "ipykernel" not in sys.modules:
    prepare_cpu()  # restarts the program once with what makes a CPU fast; a notebook does without

# %% [markdown]
"""## 1. Train

The same function that `experiments/train.py` calls."""

# %%
import numpy as np  # noqa: E402

import transformer_jax  # noqa: E402
from experiments.command_line import load_config  # noqa: E402
from transformer_jax.analysis.interpret.alignment import (  # noqa: E402
    alignment_error_rates,
    span_accuracy,
    true_alignments,
)
from transformer_jax.analysis.interpret.heads import without_heads  # noqa: E402
from transformer_jax.analysis.interventions import mask_heads  # noqa: E402
from transformer_jax.training.loop import train  # noqa: E402

if not (WORKDIR / "checkpoints").exists():
    train(load_config("configs/phrases.py", OVERRIDES), WORKDIR)
run = transformer_jax.load_run(WORKDIR)
print(run.directory.path, "checkpoint", run.steps)

# %% [markdown]
"""## 2. Find the head

The dataset knows what translates what, so attention can be held against the truth. First all words, by alignment error
rate; then only numbers in digits: of the target tokens that are part of one, how many look most at its source?"""

# %%
pairs = true_alignments(run, "test", PAIRS)
errors = alignment_error_rates(run, pairs)
is_number = lambda text: any(map(str.isdigit, text))
numbers, words = (span_accuracy(run, pairs, select)[0] for select in (is_number, lambda text: not is_number(text)))
layers, heads = numbers.shape
print("cross-attention   error rate   right on numbers   on other words")
for layer in range(layers):
    for head in range(heads):
        figures = f"{errors.heads[0, layer, head]:12.3f}{numbers[layer, head]:19.1%}{words[layer, head]:17.1%}"
        print(f"layer {layer} head {head}    {figures}")
layer, head = map(int, np.unravel_index(numbers.argmax(), numbers.shape))
attention = f"decoder/layer_{layer}/cross_attention"
print(f"Numbers are aligned best by layer {layer}, head {head}.")

# %% [markdown]
"""What it looks at while it writes one of the phrases:"""

# %%
i = next(i for i, text in enumerate(pairs.sources) if sum(map(str.isdigit, text)) > 2)
inputs = run.inputs([pairs.sources[i]], [pairs.targets[i]])
source, target = run.pieces(inputs)
weights = run.capture_inputs(inputs, [f"{attention}/weights"])[f"{attention}/weights"][0, head]
for piece, row in zip(target, weights, strict=True):
    print(f"{piece:>14} looks at {source[row.argmax()]} ({row.max():.0%})")

# %% [markdown]
"""## 3. Ablate it

`run.intervene` gives the run with activations replaced; translating needs nothing else."""

# %%
keep = np.arange(heads) != head
ablated = run.intervene(mask_heads({attention: keep}))
before, after = run.translate(pairs.sources), ablated.translate(pairs.sources)

# %% [markdown]
"""## 4. What breaks?"""


# %%
def right(translations: list[str]) -> np.ndarray:
    return np.asarray(translations) == np.asarray(pairs.targets)


def wrong_numbers(translations: list[str]) -> int:
    digits = lambda text: sorted(re.findall(r"\d+", text))
    both = zip(translations, pairs.targets, strict=True)
    return sum(digits(line) != digits(target) for line, target in both if is_number(target))


def show_broken(translations: list[str], examples: int = 5) -> None:
    broken = np.flatnonzero(right(before) & ~right(translations))
    print(f"{len(broken)} phrases broken:", dict(Counter(pairs.categories[i] for i in broken).most_common()))
    print(f"Phrases in which a number is wrong: {wrong_numbers(before)} -> {wrong_numbers(translations)}")
    for i in broken[:: max(1, len(broken) // examples)][:examples]:
        print(f"  {pairs.sources[i]}\n    was    {before[i]}\n    is     {translations[i]}")


has_number = np.asarray([is_number(text) for text in pairs.targets])
for name, chosen in (("with numbers in digits", has_number), ("without", ~has_number)):
    change = " -> ".join(f"{right(lines)[chosen].mean():.1%}" for lines in (before, after))
    print(f"{chosen.sum():5} phrases {name}: exactly right {change}")
show_broken(after)

# %% [markdown]
"""## 5. Is it this head, or any?

Each head of cross-attention in turn, by parameters this time, so that nothing is compiled anew."""

# %%
Head = tuple[int, int]


def translations_without(gone: list[Head]) -> list[str]:
    paths = [(f"decoder/layer_{layer}/cross_attention", head) for layer, head in gone]
    return without_heads(run, paths).translate(pairs.sources)


def shares(translations: list[str]) -> str:
    found = right(translations)
    return f"{found[has_number].mean():17.1%}{found[~has_number].mean():16.1%}"


print("without           numbers in digits   other phrases   (exactly right)")
for each in np.ndindex(numbers.shape):
    print(f"layer {each[0]} head {each[1]}  {shares(translations_without([each]))}")

# %% [markdown]
"""## 6. Several at once

Heads can stand in for each other. So: the heads that align numbers best together, against as many of the worst."""

# %%
order: list[Head] = [divmod(int(i), heads) for i in np.argsort(-numbers, axis=None, kind="stable")]
print("without            numbers in digits   other phrases   (exactly right)")
for count in range(1, len(order) // 2 + 1):
    for name, gone in (("best", order[:count]), ("worst", order[::-1][:count])):
        lines = translations_without(gone)
        print(f"the {count} {name:<6}      {shares(lines)}")
show_broken(translations_without(order[: len(order) // 2]))

# %% [markdown]
"""## What it says

On the documented run (docs/analysis.md) hardly anything breaks without the one head, and numbers go wrong only when
several are gone: where a head looks does not say what it is needed for."""
