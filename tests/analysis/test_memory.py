"""The table of memory is what a dry run says of each of its cells."""

import pytest

from tests.made_files import recurrent_config, tiny_config, write_pairs
from tests.made_text import tiny_text_config, write_text
from transformer_jax.analysis.memory import memory_table, tabulate_memory
from transformer_jax.analysis.plan import make_plan
from transformer_jax.errors import UserError

pytestmark = pytest.mark.xdist_group("plan")


def test_a_cell_is_what_the_dry_run_predicts(tmp_path):
    config = tiny_text_config(write_text(tmp_path))
    plan = make_plan(config, None)
    vocabulary = next(count for name, count in plan.modules if "embed" in name) // config.model.d_model
    result = tabulate_memory(config, [vocabulary], [], ["none"])
    found = {row["chunk"]: row["bytes"] for row in result["rows"]}
    assert found[config.task.loss_chunk] == plan.shapes[0].xla_memory


def test_logits_of_all_rows_at_once_take_more(tmp_path):
    config = tiny_config(write_pairs(tmp_path), task__loss_chunk=8, model__num_decoder_layers=3)
    result = tabulate_memory(config, [5000], [], ["none", "full"])
    found = {(row["chunk"], row["remat"]): row["bytes"] for row in result["rows"]}
    assert len(found) == 4
    assert found["all", "none"] > found[8, "none"] + 0.9 * 4 * (256 - 8) * 5000  # batches are a little under 256
    assert found[8, "full"] != found[8, "none"]  # which is less depends on sizes; the layers here are tiny
    table = memory_table(result)
    assert table.rows[0][:2] == ["5,000", "32"]
    assert table.columns[2:4] == ["remat none, logits by 8", "remat full, logits by 8"]


def test_what_has_no_such_sizes_is_refused(tmp_path):
    with pytest.raises(UserError, match="'most' is no policy"):
        tabulate_memory(tiny_config(tmp_path), [64], [], ["most"])
    with pytest.raises(UserError, match="families translation"):
        tabulate_memory(recurrent_config(tmp_path), [64], [])
