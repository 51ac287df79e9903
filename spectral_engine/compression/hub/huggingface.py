"""How transformers loads and saves a compressed folder: a quantiser under a name of our own.

transformers asks for it by `quantization_config` in config.json. Before the weights are loaded it
puts sparse modules, on the meta device, in the place of the layers whose weights are compressed;
then transformers loads their parts by name, as any others. A weight for which there is no sparse
module, that is tied to another one, or that transformers merges with others, becomes dense while it
is loaded (`conversions`).

Written for transformers 5 (tried with 5.24). Only imported once transformers is.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.conversion_mapping import (  # type: ignore[import-not-found]
    get_model_conversion_mapping,
)
from transformers.core_model_loading import (  # type: ignore[import-not-found]
    WeightConverter,
    WeightRenaming,
)
from transformers.quantizers.auto import (  # type: ignore[import-not-found]
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
)
from transformers.quantizers.base import HfQuantizer  # type: ignore[import-not-found]
from transformers.utils.quantization_config import (  # type: ignore[import-not-found]
    QuantizationConfigMixin,
)

from spectral_engine.checkpoints.sparse import forms, layout
from spectral_engine.checkpoints.sparse.company import QUANT_METHOD, VERSION
from spectral_engine.checkpoints.sparse.reader import CompressedFile, open_safetensors
from spectral_engine.compression.hub import conversions
from spectral_engine.compression.model import FOLLOWERS, decompress, sparse_kind, sparse_module
from spectral_engine.compression.weights import SparseWeight
from spectral_engine.factored.model import LEFT, RIGHT, expect_low_rank


class SparseConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What config.json says of a compressed folder.

    Raises:
        ValueError: a version that is not known here.
    """

    def __init__(self, quant_method: str = QUANT_METHOD, version: int = VERSION, **_: Any) -> None:
        if version != VERSION:
            raise ValueError(
                f"quantization_config: expected version {VERSION}; got {version!r}. A later "
                "spectral_engine reads it"
            )
        self.quant_method, self.version = quant_method, version


class SparseQuantizer(HfQuantizer):  # type: ignore[misc]
    """Loads the parts of compressed weights into sparse modules."""

    requires_calibration = True  # that is, the weights are compressed beforehand

    def __init__(self, quantization_config: SparseConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._dtype: torch.dtype | None = None
        #: What becomes dense, by the parameter's name, and what the model has under no name.
        self._dense: dict[str, conversions.Stored] = {}
        self._unplaced: dict[str, conversions.Stored] = {}

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        self._dtype = dtype
        return dtype

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters can be trained on top; the weights themselves are frozen."""
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    def get_state_dict_and_metadata(self, model: Any) -> tuple[None, dict[str, str]]:
        return None, {layout.VERSION_KEY: layout.VERSION}

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """Those of transformers, behind those of weights that become dense."""
        renamings, converters = _sorted(weight_conversions)
        own = [
            conversions.alone(
                {part: conversions.renamed(one, renamings) for part, one in stored.items()}, name
            )
            for name, stored in self._dense.items()
        ]
        own += conversions.merging(self._unplaced, renamings, converters)
        return own + weight_conversions

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        tied_names = {*tied, *(tied.values() if isinstance(tied, dict) else ())}
        paths = [Path(path) for path in kwargs.get("checkpoint_files") or ()]
        self._place_factors(model, paths)
        renamings, _ = _sorted(get_model_conversion_mapping(model))
        for path in paths:
            # transformers makes every new tensor a meta tensor here; the headers need real ones.
            with torch.device("cpu"), open_safetensors(path) as file:
                for name in file.names:
                    own = _name_in(model, conversions.renamed(name, renamings))
                    if own is None:
                        self._unplaced[name] = _stored(file, name)
                    elif isinstance(file, CompressedFile) and file.form(name) != "dense":
                        self._place(model, file, name, own, tied_names)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        for module in model.modules():
            if isinstance(module, SparseWeight):
                module.settle()
        # What was made dense is saved dense: nothing is to be undone.
        used = getattr(model, "_weight_conversions", None) or []
        model._weight_conversions = [one for one in used if not conversions.is_ours(one)]
        return model

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        decompress(model)
        return model

    def _place(self, model: Any, file: CompressedFile, name: str, own: str, tied: set[str]) -> None:
        """Put a sparse module where a weight goes, or note that it has to become dense.

        Args:
            name, own: what the file calls the weight, and what the model does.
        """
        module_name, _, local = own.rpartition(".")
        module = model.get_submodule(module_name)
        if local != "weight" or sparse_kind(type(module)) is None or own in tied:
            self._dense[own] = _stored(file, name)
            return
        if tuple(module.weight.shape) != file.shape(name):
            raise ValueError(
                f"{file.path}: expected {name} of shape {tuple(module.weight.shape)}, as the model "
                f"has it; got {file.shape(name)}"
            )
        parts = {
            part: torch.empty(shape, dtype=self._dtype_of(part, dtype), device="meta")
            for part, (shape, dtype) in file.part_shapes(name).items()
        }
        parent, _, child = module_name.rpartition(".")
        model.get_submodule(parent)._modules[child] = sparse_module(module, parts)

    def _place_factors(self, model: Any, paths: Iterable[Path]) -> None:
        """Let layers hold the factors that files have beside their weights, on the meta device."""
        named: dict[str, torch.Tensor] = {}
        for path in paths:
            with torch.device("cpu"), open_safetensors(path) as file:
                shapes = {name: file.shape(name) for name in file.names}
            for name, shape in shapes.items():
                prefix, _, local = name.rpartition(".")
                weight = _name_in(model, f"{prefix}.weight") if local in (LEFT, RIGHT) else None
                if weight is not None:
                    own = f"{weight.removesuffix('weight')}{local}"
                    named[own] = torch.empty(shape, device="meta")
        expect_low_rank(model, named)

    def _dtype_of(self, part: str, stored: torch.dtype) -> torch.dtype:
        return self._dtype or stored if part == forms.VALUES else stored


def register() -> None:
    """Make the quantiser known to transformers; a second call does nothing."""
    AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(QUANT_METHOD, SparseConfig)
    AUTO_QUANTIZER_MAPPING.setdefault(QUANT_METHOD, SparseQuantizer)
    if adopt not in FOLLOWERS:
        FOLLOWERS.append(adopt)


def adopt(model: Any, compressed: bool) -> None:
    """Let a model of transformers know that its weights are compressed, or no longer are.

    Its `save_pretrained` then writes what `from_pretrained` loads. Other models are left alone.
    """
    # The registry is imported in the midst of this module, which is therefore not imported above.
    modeling = sys.modules.get("transformers.modeling_utils")
    if modeling is None or not isinstance(model, modeling.PreTrainedModel):
        return
    held = getattr(model, "hf_quantizer", None)
    if compressed and held is None:
        model.hf_quantizer = SparseQuantizer(SparseConfig(), pre_quantized=True)
        model.is_quantized = True
        model.quantization_method = QUANT_METHOD
        model.config.quantization_config = model.hf_quantizer.quantization_config
    elif not compressed and isinstance(held, SparseQuantizer):
        held.remove_quantization_config(model)


def _name_in(model: nn.Module, name: str) -> str | None:
    """What the model calls a weight of the checkpoint, whose head it may have or lack."""
    base = getattr(model, "base_model_prefix", "")
    known = {one for one, _ in model.named_parameters(remove_duplicate=False)}
    for candidate in (name, name.removeprefix(f"{base}."), f"{base}.{name}"):
        if candidate in known:
            return candidate
    return None


def _stored(file: Any, name: str) -> conversions.Stored:
    """The tensors of a file that hold a weight, by part; by "" where it is dense."""
    if not isinstance(file, CompressedFile) or file.form(name) == "dense":
        return {"": name}
    return dict(zip(forms.PARTS[file.form(name)], file.stored_names(name), strict=True))


def _sorted(conversion: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """Renamings and converters."""
    given = list(conversion)
    return (
        [one for one in given if isinstance(one, WeightRenaming)],
        [one for one in given if isinstance(one, WeightConverter)],
    )
