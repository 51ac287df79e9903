"""One bit an entry: booleans packed eight a byte, and unpacked, in NumPy or on a device."""

import numpy as np
import torch

#: Gathers the low bits of the eight bytes of a word in its top byte, that of byte i as bit i.
_GATHER = 0x0102040810204080
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def words(values: torch.Tensor) -> torch.Tensor:
    """The same memory as integers of the same size."""
    return values.view(_INTEGERS[values.itemsize])


def pack(kept: torch.Tensor) -> torch.Tensor:
    """Eight booleans a byte, the first in the lowest bit; the last byte is filled up with zeros."""
    entries = kept.reshape(-1).contiguous()
    if entries.device.type == "cpu":  # NumPy has it as one operation, three times as fast
        return torch.from_numpy(np.packbits(entries.numpy(), bitorder="little"))
    missing = -entries.numel() % 8
    if missing:
        entries = torch.cat((entries, entries.new_zeros(missing)))
    gathered = entries.view(torch.uint8).view(torch.int64).mul(_GATHER)
    return (gathered >> 56).to(torch.uint8)


def unpack(packed: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` booleans of eight a byte."""
    if packed.device.type == "cpu":
        bits = np.unpackbits(packed.numpy(), count=count, bitorder="little")
        return torch.from_numpy(bits).view(torch.bool)
    found = _table(packed.device).index_select(0, packed.int())
    return found.view(torch.bool)[:count]


_TABLES: dict[torch.device, torch.Tensor] = {}


def _table(device: torch.device) -> torch.Tensor:
    """int64 (256,): the eight bits of each byte, as the eight bytes of a word."""
    if device not in _TABLES:
        bits = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
        _TABLES[device] = bits.to(torch.uint8).view(torch.int64).reshape(-1).to(device)
    return _TABLES[device]
