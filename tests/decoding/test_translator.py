"""Text to text: aligned lines, empty lines, long lines cut without loss."""

import numpy as np
import pytest

from tests.decoding.table_model import TableModel, make_params
from tests.decoding.test_batching import config
from transformer_jax.decoding.translator import BREAKS, Translator, split_after
from transformer_jax.errors import UserError

WORDS = 400


class WordTokenizer:
    """A token a word, by a hash, four letters at most; decoding gives ``<token>``."""

    def encode(self, texts):
        return [
            [4 + hash_of(word[i : i + 4]) for word in text.split() for i in range(0, len(word), 4)] for text in texts
        ]

    def decode(self, ids):
        return ["".join(f"<{i}>" for i in row) for row in ids]


def hash_of(word):
    return sum(ord(c) * (i + 7) for i, c in enumerate(word)) % (WORDS - 4)


class Pair:
    source = target = WordTokenizer()


def translator(**changes):
    return Translator(TableModel(), make_params(0, WORDS), Pair(), config(max_source_length=10, **changes))


def test_output_is_line_aligned():
    lines = ["a b c", "", "  ", "d", "a b c", "\tx y\n"] * 30
    model = translator(batch_size=4)
    found = model.translate(lines)
    assert len(found) == len(lines)
    for line, text in zip(lines, found, strict=True):
        assert bool(text) == bool(line.strip()) or text == ""
    assert found[0] == found[4] == found[0 + 6 * 29]
    assert found[1] == found[2] == ""
    assert model.report.lines == 180
    assert model.report.empty == 60
    alone = [translator().translate([line])[0] for line in lines[:6]]
    assert found[:6] == alone


def test_a_translation_is_one_line_without_tabs(monkeypatch):
    """Whatever the tokens stand for: files of translations have a line for each, and columns."""
    monkeypatch.setattr(WordTokenizer, "decode", lambda self, ids: ["a\tb\r\nc\u2028d" for _ in ids])
    assert translator().translate(["x", "y z"]) == ["a b c d"] * 2


def test_a_stream_is_read_no_further_than_needed():
    read = []

    def endless():
        for i in range(10**9):
            read.append(i)
            yield f"line {i}"

    stream = translator(batch_size=2).stream(endless())
    first = next(stream)[0].text
    assert len(read) == 16
    assert first == translator().translate(["line 0"])[0]


def test_n_best_with_scores():
    (best,) = translator(n_best=3, beam_size=5).stream(["a b c d"])
    assert len(best) == 3
    assert best[0].text == translator(beam_size=5).translate(["a b c d"])[0]
    assert best[0].score >= best[1].score >= best[2].score
    assert all(t.log_prob <= t.score for t in best)


def test_a_long_line_is_cut_at_sentence_ends():
    """Each sentence is translated as if alone, though some would fit together."""
    sentences = ["a b c.", "d e f g h!", "i j k?", "l."]
    model = translator()
    (found,) = model.translate([" ".join(sentences)])
    assert found == " ".join(translator().translate(sentences))
    assert model.report.splits == {"sentences": 1, "clauses": 0, "words": 0, "characters": 0}
    assert "1 at sentences" in str(model.report)


def test_weaker_breaks_when_needed():
    model = translator()
    line = "a b c d e f, g h i j, k l m n o p q."
    (found,) = model.translate([line])
    assert found == " ".join(translator().translate(["a b c d e f,", "g h i j,", "k l m n o p q."]))
    line = " ".join("abcdefghijklmno")
    (found,) = model.translate([line])
    assert found == " ".join(translator().translate([line[:17], line[18:]]))
    model.translate(["x" * 100])
    assert model.report.splits == {"sentences": 0, "clauses": 1, "words": 1, "characters": 1}


@pytest.mark.parametrize("kind", BREAKS)
def test_cutting_loses_nothing(kind):
    text = 'One (two). "Three!" Four, five; six: 七。八，九 — ten? eleven'  # noqa: RUF001
    parts = split_after(BREAKS[kind], text)
    assert "".join(parts) == text
    assert len(parts) > 2


def test_nothing_of_a_long_line_is_lost():
    rng = np.random.default_rng(0)
    words = [
        chr(97 + rng.integers(26)) * int(rng.integers(1, 60)) + rng.choice(["", ",", ".", "; "]) for _ in range(80)
    ]
    line = " ".join(words)
    pieces = translator()._cut(line, 1)
    assert "".join("".join(pieces).split()) == "".join(line.split())
    assert max(map(len, Pair.source.encode(pieces))) <= 9


def test_long_lines_can_be_refused_by_number():
    with pytest.raises(UserError, match="line 2 has 13 tokens; the model takes 10"):
        translator(long_lines="refuse").translate(["a", " ".join("abcdefghijkl")])


def test_forced_prefixes():
    start = WordTokenizer().decode(WordTokenizer().encode(["foo bar"]))[0]
    found = translator().translate(["a b c d e", "a b", ""], ["foo bar", "", ""])
    assert found[0].startswith(start)
    assert found[1:] == translator().translate(["a b", ""])
    with pytest.raises(UserError, match="line 1 was cut"):
        translator().translate([" ".join("abcdefghijkl")], ["foo"])
    with pytest.raises(UserError, match="1 prefixes"):
        translator().translate(["a", "b"], ["foo"])


def test_samples_do_not_depend_on_chunks():
    lines = [f"line {i} {i % 3}" for i in range(40)]
    small, large = (translator(method="sample", batch_size=size).translate(lines) for size in (2, 16))
    assert small == large
