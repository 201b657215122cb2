"""`make run`, whole, on a toy instead of its own dataset."""

from absl import flags

from experiments import command_line, quickstart
from tests.made_files import tiny_config, write_pairs


def test_quickstart_ends_with_figures_and_what_to_type_next(tmp_path, monkeypatch, capsys):
    data = write_pairs(tmp_path / "data", train=100)
    config = tiny_config(data, training__total_steps=4, evaluation__decode="none", evaluation__metric="loss")
    monkeypatch.setattr(command_line, "load_config", lambda file: config)
    monkeypatch.setattr(quickstart, "prepare_cpu", lambda: None)
    run = tmp_path / "run"
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    monkeypatch.setattr(flags.FLAGS["workdir"], "value", str(run))
    for _ in range(2):  # the second time there is nothing to train, and all the rest to show
        assert quickstart.main([]) == 0
        shown = capsys.readouterr().out
        assert "The run is complete: 4 steps." in shown
        assert shown.count("   reference   ") == quickstart.EXAMPLES
        assert "experiments/translate.py" in shown
        for figure in ("encoder.png", "decoder.png", "cross.png"):
            assert str(run / "attention" / figure) in shown
            assert (run / "attention" / figure).read_bytes().startswith(b"\x89PNG")
