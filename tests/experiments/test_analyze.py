"""The analyze command as a person meets it. What the page shows is tested under analysis."""

import json
import re

import pytest

from tests.experiments.commands import command


def test_a_page_of_several_texts_of_a_trained_run(study, tmp_path):
    texts, page = tmp_path / "texts", tmp_path / "pages" / "report.html"
    texts.write_text("two three\n\nfour\n")
    found = command(
        "analyze", study / "new" / "new-1", "--text=one", f"--file={texts}", f"--out={page}", "--beam_size=3"
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert f"{page}: 3 text(s), 0.3 MB" in found.stdout
    report = json.loads(re.search(r'id="report">(.*?)</script>', page.read_text(), re.DOTALL)[1])
    assert [example["title"] for example in report["examples"]] == ["one", "two three", "four"]
    assert report["run"] == "new-1"
    for example in report["examples"]:
        assert [view["name"] for view in example["views"]] == ["encoder", "decoder", "cross"]
        assert len(example["hypotheses"]) == 3
        assert example["candidates"]
        assert example["lens"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-run", "--text=a"], "no-such-run"),
        (["."], "nothing to analyse"),
        ([".", "--text=a", "--out=."], "--out=. is a folder"),
    ],
)
def test_mistakes_end_in_one_line_that_names_them(arguments, message):
    found = command("analyze", *arguments)
    assert found.returncode == 2
    assert message in found.stderr
    assert "Traceback" not in found.stderr
