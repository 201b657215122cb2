"""A comparison of systems as text: tables and sentences, for a terminal and for Markdown."""

import textwrap
from collections import Counter
from collections.abc import Sequence

import numpy as np

from transformer_jax.analysis.comparison import Comparison, System, TestSet
from transformer_jax.analysis.tables import Table
from transformer_jax.evaluation.significance import MetricComparison, explain


def score_table(comparisons: Sequence[Comparison], test: TestSet) -> Table:
    """A row a system, the baseline first: mean ± standard deviation over seeds, a star where both tests agree."""
    baseline = comparisons[0]
    heads = [f"{m.name} ({m.signature})" if m.name == "perplexity" else m.name for m in baseline.metrics]
    rows = [[_name(baseline.baseline), *(_spread(m.baseline_scores, m.digits) for m in baseline.metrics)]]
    for one in comparisons:
        cells = []
        for m in one.metrics:
            star = "*" if max(m.bootstrap_p, m.randomisation_p) < 0.05 else " "
            cells.append(f"{_spread(m.scores, m.digits)} ({m.difference:+.{m.digits}f}{star})")
        rows.append([_name(one.system), *cells])
    where = test.data.get("dataset") or test.data["files"]
    title = f"{len(test.sources)} sentences of {where}, {test.data['split']}: mean ± standard deviation over seeds"
    return Table(title, ["system", *heads], rows)


def footnotes(comparisons: Sequence[Comparison]) -> list[str]:
    """What the star of `score_table` means, and what the metrics are."""
    signatures = [f"{m.name}: {m.signature}" for m in comparisons[0].metrics if m.name != "perplexity"]
    return ["* p < 0.05 over sentences in both tests; over seeds, see below", *signatures]


def tests_table(one: Comparison) -> Table:
    """p-values and standard errors, those over sentences apart from those over seeds."""

    def optional(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    def row(m: MetricComparison) -> list[str]:
        return [
            m.name,
            f"{m.difference:+.{m.digits}f}",
            f"{m.bootstrap_p:.4f}",
            f"{m.randomisation_p:.4f}",
            f"{m.test_set_error:.{m.digits}f}",
            optional(m.welch_p, ".4f"),
            optional(m.seed_error, f".{m.digits}f"),
            "-" if m.interval is None else " to ".join(f"{end:+.{m.digits}f}" for end in m.interval),
        ]

    heads = ["metric", "difference", "sentences: bootstrap p", "randomisation p", "std. error"]
    heads += ["seeds: Welch p", "std. error", "95 % interval over both"]
    return Table(f"{one.system.label} against {one.baseline.label}", heads, [row(m) for m in one.metrics])


def breakdown_tables(one: Comparison) -> list[Table]:
    """BLEU by sentence length and F1 of words by frequency; means over seeds."""
    heads = [one.baseline.label, one.system.label, "difference"]
    lengths = [[name, str(count), *_pair(a, b)] for name, count, a, b in one.lengths]
    frequencies = [[name, str(count), *_pair(a, b)] for name, count, a, b in one.frequencies]
    return [
        Table("BLEU by length of the source", ["source words", "sentences", *heads], lengths),
        Table("F1 of words by their count in training", ["training count", "words", *heads], frequencies),
    ]


def statements(one: Comparison) -> list[str]:
    """What the tests mean, a paragraph for each metric."""
    return [" ".join(explain(m, one.system.label, one.baseline.label)) for m in one.metrics]


def changed_sentences(one: Comparison) -> list[str]:
    """The sentences that changed most, a block of lines each."""
    return [
        f"{'sentence':>10} {row['sentence']}, chrF {row['chrf_change']:+.1f}\n"
        f"{'source':>10} {row['source']}\n{'reference':>10} {row['reference']}\n"
        f"{'baseline':>10} {_outputs(row['baseline'])}\n{'system':>10} {_outputs(row['system'])}"
        for row in one.changes
    ]


def show(comparisons: Sequence[Comparison], test: TestSet) -> None:
    """Prints everything."""
    score_table(comparisons, test).show()
    print("\n".join(footnotes(comparisons)))
    for one in comparisons:
        print("\nConfig: " + ("; ".join(one.config_changes) or "the same"))
        tests_table(one).show()
        print("\n\n".join(textwrap.fill(line, WIDTH) for line in statements(one)), end="\n\n")
        for table in breakdown_tables(one):
            table.show()
        print("Sentences that changed most (mean sentence chrF; behind each output, how many seeds gave it)")
        print("\n\n".join(changed_sentences(one)))


def markdown(comparisons: Sequence[Comparison], test: TestSet) -> str:
    """The same, to paste into a paper or an issue."""
    star, *signatures = footnotes(comparisons)
    # Escaped, or the star would begin a list.
    parts = [score_table(comparisons, test).markdown(), "  \n".join([rf"\{star}", *signatures]) + "\n"]
    for one in comparisons:
        changes = "; ".join(f"`{line}`" for line in one.config_changes) or "the same"
        parts += [f"### {one.system.label} against {one.baseline.label}\n", f"Config: {changes}\n"]
        parts += [tests_table(one).markdown(), "\n".join(f"- {line}" for line in statements(one)) + "\n"]
        parts += [table.markdown() for table in breakdown_tables(one)]
        rows = [
            [str(r["sentence"]), f"{r['chrf_change']:+.1f}", r["source"], r["reference"]]
            + [_outputs(r[side]) for side in ("baseline", "system")]
            for r in one.changes
        ]
        parts.append(Table("Sentences that changed most", ["sentence", "chrF", *TEXTS], rows, left=TEXTS).markdown())
    return "\n".join(parts)


WIDTH = 118
TEXTS = ("source", "reference", "baseline", "system")


def _outputs(lines: Sequence[str]) -> str:
    """The different outputs of a side's runs, the commonest first."""
    found = Counter(lines).most_common()
    return found[0][0] if len(lines) == 1 else "   ".join(f"{line} ({count})" for line, count in found)


def _name(system: System) -> str:
    return f"{system.label} ({len(system.runs)} seed{'s' if len(system.runs) > 1 else ''})"


def _spread(scores: Sequence[float], digits: int) -> str:
    spread = f" ± {np.std(scores, ddof=1):.{digits}f}" if len(scores) > 1 else ""
    return f"{np.mean(scores):.{digits}f}{spread}"


def _pair(a: float | None, b: float | None) -> list[str]:
    cells = ["-" if value is None else f"{value:.1f}" for value in (a, b)]
    return [*cells, "-" if a is None or b is None else f"{b - a:+.1f}"]
