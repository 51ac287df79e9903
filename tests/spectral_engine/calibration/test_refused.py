"""What is no batch for a model is refused by a message that names the way out; masks are not."""

import numpy as np
import pytest
import torch
from torch import nn

import spectral_engine as se
from tests.support.calibration_cases import Mlp, seeded


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 6), nn.Linear(6, 2)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        batch, length = input_ids.shape
        return self.head(self.embed(input_ids)).reshape(batch, length, 2)


class Dataset:
    """As datasets.Dataset, by the module that it comes from."""

    def __iter__(self):
        return iter([{"input_ids": [1, 2]}])


Dataset.__module__ = "datasets.arrow_dataset"


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ("some text", TypeError, r"batches of tensors; got str; tokenizer\(texts"),
        (["some", "text"], TypeError, r"tensors in batch 0; got str; tokenizer\(texts"),
        ([["some", "text"]], TypeError, r"tensors in batch 0; got list; tokenizer\(texts"),
        ([{"input_ids": [[1, 2], [3]]}], TypeError, r'got dict; .* return_tensors="pt"'),
        ({"input_ids": [[1, 2], [3]]}, TypeError, r'got dict; .* return_tensors="pt"'),
        ([[1, 2]], TypeError, "got list; a tokenizer makes tensors"),
        ([torch.ones(2, 3).long().numpy()], TypeError, "got ndarray; torch.from_numpy"),
        (torch.ones(2, 3).numpy(), TypeError, "got a NumPy array, of which torch.from_numpy"),
        ([None], TypeError, "expected tensors in batch 0; got NoneType"),
        ([{}], TypeError, "expected tensors in batch 0; got an empty dict"),
        (Dataset(), TypeError, r"datasets\.Dataset, .*with_format\(\"torch\"\)"),
        ([torch.ones(2, 3).long(), torch.arange(3)], ValueError,
         r"does not take batch 1, of shapes \[\(3,\)\].* ids\[None\]"),
        ([torch.full((2, 3), 50)], ValueError, "does not take batch 0"),
        ([{"input_ids": torch.ones(2, 3).long(), "text": ["a", "b"]}], TypeError, "text"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("sequential", [None, True])
def test_no_batches_for_a_model(batches, error, message, sequential):
    """Catches raw errors of torch, from deep inside a model, that name no argument."""
    model = seeded(Tokens)
    before = model.head.weight.clone()
    with pytest.raises(error, match=r"^calibration: ") as caught:
        se.prune(model, calibration=se.Calibration(batches, sequential=sequential))
    assert caught.match(message)
    assert torch.equal(model.head.weight, before)


def test_own_forwards_take_anything():
    """Catches strings refused that the user's forward knows how to tokenize."""
    calibration = se.Calibration(
        ["ab", "c"], forward=lambda model, text: model(torch.tensor([[ord(c) - 90 for c in text]]))
    )
    assert se.prune(seeded(Tokens), calibration=calibration).layers[0].samples == 3


def test_offloaded_models_are_named():
    """Catches "Tensor.item() cannot be called on meta tensors"."""
    model = Mlp()
    model.second.to("meta")
    with pytest.raises(ValueError, match=r"calibration: second.weight is on the meta device"):
        se.calibrate(model, [torch.ones(2, 8)])


def test_lazy_models_are_named():
    """Catches a model that a calibration which fails has given its shapes."""
    model = nn.Sequential(nn.Linear(8, 4), nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"model: 1.weight has no shape yet; run the model once"):
        se.calibrate(model, [torch.full((2, 8), float("nan"))])
    assert isinstance(model[1].weight, nn.UninitializedParameter)


@pytest.mark.parametrize("form", ["dictionary", "tuple", "forward"])
def test_additive_masks(form):
    """Catches -inf in a mask refused as data that is not finite."""
    layer = seeded(lambda: nn.TransformerEncoderLayer(8, 2, 8, batch_first=True))
    model, x = nn.TransformerEncoder(layer, 1), torch.randn(2, 6, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    batch = (x, mask) if form == "tuple" else {"src": x, "mask": mask}
    forward = (lambda m, b: m(b["src"], mask=b["mask"])) if form == "forward" else None
    found = se.calibrate(model, [batch], forward=forward)
    assert found.moments["layers.0.linear1.weight"].count == 12


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_data_that_is_not_finite(bad):
    """Catches -inf let pass as a mask where a layer sees it."""
    with pytest.raises(ValueError, match=r"calibration: .* NaN or infinity"):
        se.calibrate(Mlp(), [torch.full((2, 8), bad)])


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_moments_of_a_wrapped_model_are_the_models(wrap):
    """Catches names with "module." or "_orig_mod." that no other model has."""
    batches = [torch.randn(6, 8)]
    inputs = se.calibrate(wrap(Mlp()), batches)
    assert inputs.moments.keys() == {"first.weight", "second.weight", "third.weight"}
    plain, through, wrapped = Mlp(), Mlp(), Mlp()
    se.prune(plain, "wanda", 0.5, calibration=batches)
    se.prune(through, "wanda", 0.5, calibration=inputs)
    se.prune(wrap(wrapped), "wanda", 0.5, calibration=batches)
    for one in (through, wrapped):
        assert torch.equal(one.third.weight, plain.third.weight)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: x.to("meta"), "batch 0; got one on the meta device"),
        (lambda x: x.to_sparse(), "batch 0; got one of layout torch.sparse_coo"),
        (lambda x: x.to_sparse_csr(), "batch 0; got one of layout torch.sparse_csr"),
        (lambda x: x.to(torch.float8_e4m3fn), "batch 0; got one of torch.float8_e4m3fn"),
        (lambda x: torch.nested.nested_tensor([x, x]), "batch 0; got a nested one"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_cannot_be_looked_at(make, message):
    """Catches a raw error of torch, of a meta, sparse, nested or eight-bit batch."""
    with pytest.raises(TypeError, match=message):
        se.calibrate(Mlp(), [make(torch.ones(3, 12))])


def test_a_scalar_of_numpy_is_no_batch():
    """Catches a scalar that is taken for a sequence because it can be indexed."""
    with pytest.raises(TypeError, match="calibration: expected batches; got int64"):
        se.calibrate(Mlp(), np.int64(3))
