"""Zip archives that are not to be trusted: what a member claims is checked before it is expanded.

A zip file states the size of each member before and after packing, and a hostile one lies. A member
must lie within the file, share no byte with another one, and be stored or deflated, which is what
NumPy and torch write: bz2 and LZMA expand a few kilobytes to gigabytes, and zipfile expands a whole
block of them to hand out the first byte. Deflate cannot shrink its input by more than 1032 : 1, so
that a size beyond this ratio is a lie.

Sources: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT (4.3.7: the local header);
https://zlib.net/zlib_tech.html ("Maximum Compression Factor").
"""

import struct
import zipfile
from collections import Counter
from pathlib import Path
from typing import BinaryIO

from .base import CheckpointError, brief

MOST_OF_DEFLATE = 1032
#: What an empty deflate stream may take, so that tiny members pass.
SLACK = 64
LOCAL_HEADER = 30
_ENCRYPTED = 1
_ALIGNMENT = 64
_ZIP64_EXTRA = 20
#: The mark of an extra field without meaning; torch pads its archives under the same one.
_PADDING_MARK = 0x4246


def checked_members(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    """List the members of an archive, once their claims agree with the file.

    Args:
        archive: open to read.
        path: for the error.

    Raises:
        CheckpointError: two members of one name or of one place, a member past the end of the
            data, encrypted, packed otherwise than by deflate, or larger than deflate can tell.
    """
    infos = archive.infolist()
    repeated = [name for name, n in Counter(info.filename for info in infos).items() if n > 1]
    if repeated:
        raise CheckpointError(
            path, "each name once", f"{len(infos)} members, {brief(repeated[0])} repeated"
        )
    ordered = sorted(infos, key=lambda info: info.header_offset)
    ends = [info.header_offset for info in ordered[1:]] + [archive.start_dir]
    for info, end in zip(ordered, ends, strict=True):
        _check(info, end, path)
    return infos


def data_start(file: BinaryIO, info: zipfile.ZipInfo, path: Path) -> int:
    """Return the byte of the file at which the data of a checked member begins."""
    file.seek(info.header_offset)
    header = file.read(LOCAL_HEADER)
    if len(header) < LOCAL_HEADER or not header.startswith(b"PK\3\4"):
        raise CheckpointError(path, f"a header before {brief(info.filename)}", "none")
    name, extra = struct.unpack("<HH", header[-4:])
    return int(info.header_offset + LOCAL_HEADER + name + extra)


def aligned_member(info: zipfile.ZipInfo, offset: int, *, large: bool) -> zipfile.ZipInfo:
    """Describe a stored member like `info` whose data begin at a multiple of 64 bytes.

    Args:
        info: gives the name and the date.
        offset: the byte of the file at which the member's header will stand.
        large: whether it is written with `force_zip64`, which takes 20 bytes more.
    """
    member = zipfile.ZipInfo(info.filename, info.date_time)
    member.external_attr = info.external_attr
    header = LOCAL_HEADER + len(info.filename.encode()) + 4 + (_ZIP64_EXTRA if large else 0)
    count = -(offset + header) % _ALIGNMENT
    member.extra = struct.pack("<HH", _PADDING_MARK, count) + bytes(count)
    return member


def _check(info: zipfile.ZipInfo, end: int, path: Path) -> None:
    label = brief(info.filename)
    if info.flag_bits & _ENCRYPTED:
        raise CheckpointError(path, f"{label} to be readable", "it is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        kind = {zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "LZMA"}.get(info.compress_type)
        found = f"packed by {kind or f'method {info.compress_type}'}"
        raise CheckpointError(path, f"{label} stored or deflated", found)
    if info.header_offset < 0 or info.header_offset + LOCAL_HEADER + info.compress_size > end:
        raise CheckpointError(
            path, f"{label} to end before byte {end}", f"{info.compress_size} bytes of its own"
        )
    stored = info.compress_type == zipfile.ZIP_STORED
    most = info.compress_size if stored else MOST_OF_DEFLATE * info.compress_size + SLACK
    if info.file_size > most or (stored and info.file_size < most):
        raise CheckpointError(
            path,
            f"{label} to hold at most {most} bytes, as its {info.compress_size} packed ones can",
            f"{info.file_size}",
        )
