"""The pickle of a torch file, taken apart without running any of it.

A pickle is a program for a small stack machine whose instructions can call any function. This
machine executes the instructions that build plain data and notes the rest: a tensor becomes a
`StoredTensor` that says where its elements lie, an object of a class known to be plain data
becomes a `Foreign`, and any other global is refused. No function or class of the file is called,
and nothing is allocated that the file does not hold, whatever sizes it claims.

Source: Python's pickletools; `torch._weights_only_unpickler`, for the globals of torch.
"""

import pickletools
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .base import CheckpointError, brief
from .torch_globals import (
    DICTS,
    DTYPES,
    PARAMETERS,
    PLAIN,
    PY2_MODULES,
    STORAGES,
    TENSORS,
    user_globals,
)
from .torch_tensors import Foreign, Storage, StoredTensor, check_extent

EXPECTED = "a state dict saved by torch.save, with nothing in it but tensors and plain data"

_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_KEYS = (str, bytes, int, float, bool, type(None))


@dataclass(frozen=True)
class _Global:
    name: str


class _Mark:
    """The place on the stack up to which the next collection reaches."""


class Unpickled:
    """What one pickle holds.

    Attributes:
        value: dicts, lists, tuples, numbers and strings as they are, else a `StoredTensor` or
            a `Foreign`. A dict of any known kind is a dict.
        tensors: every stored tensor, those inside of foreign objects too.
        storages: every storage that is named, those of foreign tensors too.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.tensors: list[StoredTensor] = []
        self.storages: list[Storage] = []
        self._path = path
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}
        self._allowed = user_globals()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Escapes in damaged names.
            for opcode, argument, _ in pickletools.genops(file):
                self._step(opcode.name, argument)
        self.value = self._pop()

    def _step(self, name: str, argument: object) -> None:
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[int(str(argument))] = self._stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[int(str(argument))])
        elif name not in ("PROTO", "FRAME", "STOP"):
            step = _STEPS.get(name)
            if step is None:
                raise CheckpointError(self._path, EXPECTED, f"the pickle instruction {name}")
            step(self, argument)

    def _pop(self) -> object:
        return self._stack.pop()

    def _pop_to_mark(self) -> list[object]:
        for index in range(len(self._stack) - 1, -1, -1):
            if isinstance(self._stack[index], _Mark):
                items = self._stack[index + 1 :]
                del self._stack[index:]
                return items
        raise CheckpointError(self._path, EXPECTED, "a pickle whose mark is missing")

    def _global(self, argument: object) -> None:
        module, _, name = str(argument).partition(" ")
        self._find(module, name)

    def _stack_global(self, _: object) -> None:
        name, module = self._pop(), self._pop()
        self._find(str(module), str(name))

    def _find(self, module: str, name: str) -> None:
        full = f"{PY2_MODULES.get(module, module)}.{name}"
        storage = module in ("torch", "torch.cuda", "torch.storage") and name in STORAGES
        known = full in PLAIN or full in DICTS or full in TENSORS or full in DTYPES
        if not (storage or known or full in self._allowed):
            raise CheckpointError(
                self._path,
                EXPECTED,
                f"a pickle that would run {brief(full)[1:-1]} (if you trust the file, load it with"
                " weights_only=False and save its state dict alone)",
            )
        self._stack.append(_Global(full))

    def _persistent(self, _: object) -> None:
        """A storage: ("storage", its class, key, device, elements), and None in older files."""
        match self._pop():
            case ("storage" | b"storage", _Global(name), key, _, int(count), *view) if (
                name.rpartition(".")[2] in STORAGES and count >= 0 and view in ([], [None])
            ):
                dtype = STORAGES[name.rpartition(".")[2]]
                text = key.decode("latin-1") if isinstance(key, bytes) else str(key)
                self.storages.append(Storage(text, dtype, count * dtype.itemsize))
                self._stack.append(self.storages[-1])
            case found:
                raise CheckpointError(self._path, "the storage of a tensor", brief(found))

    def _reduce(self, _: object) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise CheckpointError(self._path, EXPECTED, f"a call of {brief(function)}")
        self._stack.append(self._call(function.name, arguments))

    def _new_with_keywords(self, _: object) -> None:
        self._pop()
        self._reduce(None)

    def _call(self, name: str, arguments: tuple[object, ...]) -> object:
        """The object that a call would return, as far as it is known without calling."""
        if name in DICTS:
            return _dict_of(arguments, self._path)
        if name == "torch.Size":
            [sizes] = arguments
            return sizes
        if name in PARAMETERS or name.startswith("torch._utils._rebuild_parameter"):
            data = arguments[0] if arguments else None
            return data if isinstance(data, StoredTensor) else Foreign(name, tensor=True)
        if name.startswith("torch._utils._rebuild_tensor"):
            return self._tensor(name, arguments)
        if name == "torch._tensor._rebuild_from_type_v2":
            match arguments:
                case (_Global(inner), _Global(kind), tuple(own), _) if (
                    kind == "torch.Tensor" or kind in PARAMETERS
                ):
                    return self._call(inner, own)
        return Foreign(name, tensor=name in TENSORS)

    def _tensor(self, name: str, arguments: tuple[object, ...]) -> object:
        typed = name.endswith("_v3")
        match arguments:
            case (Storage() as storage, int(offset), tuple(size), tuple(stride), *rest) if (
                _are_counts([offset]) and _are_counts(size) and _are_counts(stride)
            ):
                dtype = storage.dtype
                if typed and len(rest) > 2 and isinstance(rest[2], _Global):
                    dtype = DTYPES.get(rest[2].name, dtype)
                bits = rest[3 if typed else 2 :]
                if bits and bits[0]:
                    return Foreign("a conjugated or negated view", tensor=True)
                tensor = StoredTensor(storage, offset, size, stride, dtype)
                check_extent(tensor, self._path)
                self.tensors.append(tensor)
                return tensor
        raise CheckpointError(self._path, "a tensor in a storage", brief(arguments))

    def _build(self, _: object) -> None:
        """The attributes of an object: of no concern here."""
        self._pop()

    def _list(self, _: object) -> None:
        self._stack.append(self._pop_to_mark())

    def _tuple(self, _: object) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def _short_tuple(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        if len(items) < count or any(isinstance(item, _Mark) for item in items):
            raise CheckpointError(self._path, EXPECTED, "a pickle whose stack is empty")
        del self._stack[-count:]
        self._stack.append(items)

    def _dict(self, _: object) -> None:
        items = self._pop_to_mark()
        self._stack.append({})
        self._set(items)

    def _set_unordered(self, _: object) -> None:
        self._pop_to_mark()
        self._stack.append(Foreign("builtins.frozenset"))

    def _append(self, items: Sequence[object]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Foreign):
            raise CheckpointError(self._path, EXPECTED, f"items for {brief(target)}")

    def _set(self, items: Sequence[object]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[_key(key, self._path)] = value
        elif not isinstance(target, Foreign):
            raise CheckpointError(self._path, EXPECTED, f"entries for {brief(target)}")

    def _set_one(self, _: object) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])


_STEPS: dict[str, Callable[[Unpickled, object], object]] = {
    "MARK": lambda self, _: self._stack.append(_Mark()),
    "POP": lambda self, _: self._pop(),
    "POP_MARK": lambda self, _: self._pop_to_mark(),
    "DUP": lambda self, _: self._stack.append(self._stack[-1]),
    "MEMOIZE": lambda self, _: self._memo.update({len(self._memo): self._stack[-1]}),
    "EMPTY_LIST": lambda self, _: self._stack.append([]),
    "EMPTY_TUPLE": lambda self, _: self._stack.append(()),
    "EMPTY_DICT": lambda self, _: self._stack.append({}),
    "EMPTY_SET": lambda self, _: self._stack.append(Foreign("builtins.set")),
    "TUPLE1": lambda self, _: self._short_tuple(1),
    "TUPLE2": lambda self, _: self._short_tuple(2),
    "TUPLE3": lambda self, _: self._short_tuple(3),
    "APPEND": lambda self, _: self._append([self._pop()]),
    "APPENDS": lambda self, _: self._append(self._pop_to_mark()),
    "ADDITEMS": lambda self, _: self._append(self._pop_to_mark()),
    "SETITEM": Unpickled._set_one,
    "SETITEMS": lambda self, _: self._set(self._pop_to_mark()),
    "LIST": Unpickled._list,
    "TUPLE": Unpickled._tuple,
    "DICT": Unpickled._dict,
    "FROZENSET": Unpickled._set_unordered,
    "GLOBAL": Unpickled._global,
    "STACK_GLOBAL": Unpickled._stack_global,
    "REDUCE": Unpickled._reduce,
    "NEWOBJ": Unpickled._reduce,
    "NEWOBJ_EX": Unpickled._new_with_keywords,
    "BUILD": Unpickled._build,
    "BINPERSID": Unpickled._persistent,
}


def _key(key: object, path: Path) -> object:
    """A key of a dict: a plain value, or a flat tuple of them, whose hash is quickly found."""
    parts = key if isinstance(key, tuple) else (key,)
    if isinstance(key, Foreign | _Global):
        return id(key), key
    if all(isinstance(part, _KEYS) for part in parts):
        return key
    raise CheckpointError(path, "plain keys in dicts", brief(key))


def _dict_of(arguments: tuple[object, ...], path: Path) -> dict[object, object]:
    """The dict that a call such as OrderedDict([["a", 1]]) makes."""
    result: dict[object, object] = {}
    content = arguments[0] if arguments else None
    if isinstance(content, dict):
        result.update(content)
    elif isinstance(content, list):
        for pair in content:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise CheckpointError(path, "pairs of a key and a value", brief(pair))
            result[_key(pair[0], path)] = pair[1]
    return result


def _are_counts(values: Iterable[object]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)
