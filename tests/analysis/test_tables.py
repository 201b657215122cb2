"""A table as Markdown, CSV and on a terminal."""

from transformer_jax.analysis.tables import Table

TABLE = Table("Scores", ["system", "BLEU", "what"], [["a|b", "1.50", "x\ny"], ["c", "10.00", "z, w"]], left=("what",))


def test_markdown_keeps_cells_whole():
    lines = TABLE.markdown().splitlines()
    assert lines[0] == "**Scores**"
    assert lines[2:] == [
        "| system | BLEU | what |",
        "| --- | ---: | --- |",
        "| a\\|b | 1.50 | x<br>y |",
        "| c | 10.00 | z, w |",
    ]


def test_csv_is_quoted():
    assert TABLE.csv() == 'system,BLEU,what\na|b,1.50,"x\ny"\nc,10.00,"z, w"\n'


def test_a_terminal_sees_every_cell_unchanged(capsys):
    Table("", ["run", "state"], [["[bold]a[/bold]", "running"]]).show()
    shown = capsys.readouterr().out
    assert "[bold]a[/bold]" in shown  # a path may look like markup
    assert "running" in shown


def test_notes_stand_below(capsys):
    table = Table("", ["a"], [["1"]], notes=["[one]", "two"])
    assert table.markdown() == "| a |\n| --- |\n| 1 |\n\n[one]; two\n"
    table.show()
    assert capsys.readouterr().out.rstrip().endswith("[one]\ntwo")
