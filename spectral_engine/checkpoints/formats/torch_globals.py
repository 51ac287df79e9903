"""The globals that the pickle of a torch file may name: torch's own, and classes of plain data.

None of them is called. The lists decide what is noted and what is refused by name: a file that
would run anything else when it is loaded without care is not read, and not copied on.
"""

import torch

#: Storage classes of torch and the dtypes of their elements; an untyped one counts bytes.
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
}
DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}

#: Classes that hold a dict; their entries are read as those of a dict.
DICTS = {
    "collections.OrderedDict",
    "collections.Counter",
    "collections.defaultdict",
    "builtins.dict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
}
#: Classes and functions of plain data; they are noted, never called.
PLAIN = {
    "_codecs.encode",
    "argparse.Namespace",
    "types.SimpleNamespace",
    "copyreg._reconstructor",
    *(f"builtins.{name}" for name in ("bytearray", "bytes", "complex", "float", "frozenset")),
    *(f"builtins.{name}" for name in ("int", "list", "object", "range", "set", "slice", "str")),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(f"pathlib.{kind}Path" for kind in ("", "Posix", "Windows", "PurePosix", "PureWindows")),
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "decimal.Decimal",
    "fractions.Fraction",
    "uuid.UUID",
    "typing.Any",
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.{name}"
        for core in ("core", "_core")
        for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
    ),
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Float", "Integer", "String")),
    "torch.Size",
    "torch.device",
    "torch.serialization._get_layout",
    "torch.torch_version.TorchVersion",
    *(f"torch.per_{kind}" for kind in ("tensor_affine", "channel_affine")),
    *(f"torch.per_{kind}" for kind in ("tensor_symmetric", "channel_symmetric")),
    "torch.per_channel_affine_float_qparams",
}
PARAMETERS = {"torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}
#: Classes and functions that make tensors; those beside "_rebuild_tensor*" make none that is read.
TENSORS = {
    *PARAMETERS,
    "torch.Tensor",
    "torch._tensor._rebuild_from_type_v2",
    *(f"torch.{kind}Tensor" for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int")),
    *(f"torch.{kind}Tensor" for kind in ("Short", "Char", "Byte", "Bool")),
    *(
        f"torch._utils._rebuild_{kind}"
        for kind in (
            "tensor",
            "tensor_v2",
            "tensor_v3",
            "parameter",
            "parameter_with_state",
            "qtensor",
            "sparse_tensor",
            "meta_tensor_no_storage",
            "nested_tensor",
            "wrapper_subclass",
            "device_tensor_from_numpy",
            "device_tensor_from_cpu_tensor",
        )
    ),
}
PY2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


def user_globals() -> set[str]:
    """What the user has declared safe to `torch.serialization`."""
    names = set()
    for item in torch.serialization.get_safe_globals():
        if isinstance(item, tuple):
            names.add(str(item[1]))
        else:
            names.add(f"{item.__module__}.{item.__qualname__}")
    return names
