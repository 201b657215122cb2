"""Scores of translations against references, by sacreBLEU, with the signatures that make them comparable."""

from collections.abc import Sequence

from sacrebleu.metrics import BLEU, CHRF

from transformer_jax.errors import UserError


def translation_scores(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """Scores detokenised hypotheses against one reference each.

    Returns:
      bleu: cased BLEU, 0 to 100, tokenised by sacreBLEU's 13a (Papineni et al. 2002; Post 2018).
      chrf: chrF2, 0 to 100 (Popović 2015).
      bleu_lowercase_tokenized: BLEU of the same lines, lower-cased and tokenised by 13a: what Multi30k papers
        report. Not to be compared with the cased one.
      exact_match: the share of hypotheses equal to their reference, 0 to 1, but for blanks at the ends.
      NAME_signature, for the first three: sacreBLEU's signature, with its version.

    Raises:
      UserError: there are no lines, or not as many hypotheses as references.
    """
    if not references or len(hypotheses) != len(references):
        raise UserError(
            f"{len(hypotheses)} hypotheses cannot be scored against {len(references)} references: "
            "there must be as many of both, one a line, and at least one."
        )
    scores: dict[str, float | str] = {}
    metrics = {"bleu": BLEU(), "chrf": CHRF(), "bleu_lowercase_tokenized": BLEU(lowercase=True)}
    for name, metric in metrics.items():
        scores[name] = metric.corpus_score(list(hypotheses), [list(references)]).score
        scores[f"{name}_signature"] = str(metric.get_signature())
    equal = sum(h.strip() == r.strip() for h, r in zip(hypotheses, references, strict=True))
    scores["exact_match"] = equal / len(references)
    return scores
