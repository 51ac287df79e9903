"""README's code, as it stands."""

import torch

from tests.support.pages import REPOSITORY, Reader, blocks_of, own_training, write_workspace

README = REPOSITORY / "README.md"
#: More than a reader takes in at a glance.
LONGEST = 10


def test_code_blocks_run_as_they_stand(tmp_path, monkeypatch, capsys):
    """Catches an example that a change of the code has left behind."""
    monkeypatch.chdir(tmp_path)
    write_workspace(tmp_path)
    torch.manual_seed(0)
    blocks, reader = blocks_of(README), Reader(own_training())
    assert len(blocks) >= 9
    for block in blocks:
        reader.run(block, README)
    made = {"spectra.npz", "spectrum.png", "pruned", "small", "dense-again"}
    assert {path.name for path in tmp_path.iterdir()} >= made
    assert "kept, recovered" in capsys.readouterr().out


def test_code_blocks_are_short():
    """Catches an example that nobody reads to its end."""
    for block in blocks_of(README):
        lines = [line for line in block.text.splitlines() if line]
        assert len(lines) < LONGEST, block.text
