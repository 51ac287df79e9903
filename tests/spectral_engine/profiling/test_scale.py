"""What a large folder takes, computed: counts by hand, and what more processes change."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from spectral_engine.cli import app
from spectral_engine.profiling.scale import Rates, rates_here, scale_rows, shapes_of_config
from spectral_engine.profiling.shapes import MODELS, llama_shapes

TINY = llama_shapes("tiny", 8, 16, 4, 3, 10, "float32")
#: Nothing takes time.
FREE = Rates("free", *[float("inf")] * 7)


def by_processes(rows, recipe, field):
    return [getattr(row, field) for row in rows if row.recipe == recipe]


def test_sizes_are_counted_by_hand():
    """Catches an embedding or a layer left out, moments of the wrong side, and bytes of a dtype."""
    rows = scale_rows(TINY, 4, 2, [FREE])
    block = 8 * 8 + 4 * 8 + 4 * 8 + 8 * 8 + 16 * 8 + 16 * 8 + 8 * 16
    inside = 2 * (2 * 8 + 8 + 4 + 4 + 8 + 16 + 16 + 8)
    alone, several, _ = by_processes(rows, "wanda", "memory")
    assert alone == 4 * (block + inside) + 8 * 16**2 + 4 * 16**2
    assert several - alone == 8 * 16**2
    assert by_processes(rows, "wanda", "disk") == [4 * (3 * block + 2 * 4 * 2 * 8)] * 3
    sent = 3 * (8 * (6 * 8**2 + 16**2) + 4 * block)
    assert by_processes(rows, "wanda", "traffic") == [0, sent, sent]


@pytest.mark.parametrize(
    ("field", "shared"),
    [("forward", 128 / 17), ("moments", 128 / 17), ("solving", None), ("disk", 1.0)],
)
def test_time_is_that_of_the_longest_process(field, shared):
    """Catches work that is divided though one process does it, and a first batch that is free."""
    rows = scale_rows(MODELS["llama-7b"], 128, 64, [replace(FREE, **{field: 1e12})])
    one, eight, _ = (seconds["free"] for seconds in by_processes(rows, "sparsegpt", "seconds"))
    if shared is None:  # query, key and value side by side; the largest layer is one process's
        assert 1.0 < one / eight < 2.0
    else:
        assert one / eight == pytest.approx(shared)


def test_a_configuration_is_read(tmp_path):
    """Catches keys of as many heads as queries, and a number that is missing and taken for 0."""
    config = {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
        "torch_dtype": "float32",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = shapes_of_config(tmp_path)
    assert found.blocks == llama_shapes("", 576, 1536, 192, 30, 49152).blocks
    assert found.dtype == "float32"
    del config["hidden_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="expected hidden_size, a number"):
        shapes_of_config(tmp_path / "config.json")


def test_rates_are_measured():
    """Catches a rate that is no number, and one of the machine's threads together."""
    rates = rates_here("float32")
    assert all(value > 0 for value in vars(rates).values() if isinstance(value, float))


def test_the_command(tmp_path):
    """Catches a table without a model, and an option that would be left out without a word."""
    done = CliRunner().invoke(app, ["profile", "--scale", "--json", "--samples", "8"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert [rates["name"] for rates in told["rates"]] == ["CPU", "H100"]
    assert len(told["rows"]) == 18
    done = CliRunner().invoke(app, ["profile", "--scale", "--model", "llama-7b"])
    assert "llama-7b" in done.output
    assert "not measured" in done.output
    for words, said in ((["--rank", "4"], "scale: expected none"), (["--model", "x"], "model:")):
        done = CliRunner().invoke(app, ["profile", "--scale", *words])
        assert said in str(done.exception)
