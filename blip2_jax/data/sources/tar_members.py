"""The members of a tar from its headers: ustar, old, GNU and pax forms.

Python's `tarfile` reads the same members. Headers are parsed here because `tarfile`
takes three times as long, keeps an object per member in memory, and can be sent
backwards or into deep recursion by damaged headers. Here each header lies behind the
one before, and what it demands is checked against the size of the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import NamedTuple

from blip2_jax.data.sources.read_ahead import ReadAhead

BLOCK = 512
_MAX_EXTENSION = 2**20  # bytes of an extended header; names have a few hundred
_MAX_NAME = 2**16 - 1

REGULAR = frozenset((b"0", b"\0", b"7"))
LINKS = frozenset((b"1", b"2"))
DIRECTORY, SPARSE = b"5", b"S"
_LONG_NAME, _LONG_LINK = b"L", b"K"
_PAX, _PAX_GLOBAL = frozenset((b"x", b"X")), b"g"
_EXTENSIONS = _PAX | {_PAX_GLOBAL, _LONG_NAME, _LONG_LINK}
# Links, devices, directories and pipes have no data, whatever size their header states.
_WITHOUT_DATA = LINKS | {b"3", b"4", DIRECTORY, b"6"}


class DamagedTar(ValueError):
    """The file is no tar, or is damaged; the message names the place."""


class Member(NamedTuple):
    """A member of a tar.

    Attributes:
      name: path in the tar, in the bytes of the tar.
      kind: type flag of the header; `DIRECTORY` also for directories of the old form.
      offset: of the data in the tar.
      size: of the data, in bytes.
      sparse: the data leaves out holes.
    """

    name: bytes
    kind: bytes
    offset: int
    size: int
    sparse: bool


@dataclasses.dataclass
class _Extension:
    """What extended headers say about the member behind them; the first one counts."""

    name: bytes | None = None
    size: int | None = None
    sparse: bool = False
    pending: bool = False  # no member has followed yet


def read_members(file: ReadAhead, file_size: int) -> Generator[Member, None, int]:
    """Yield the members of a tar.

    Args:
      file: the tar.
      file_size: its size in bytes.

    Returns:
      The offset of the end mark, or of the end of a file without one.

    Raises:
      DamagedTar: see there.
    """
    offset, extension = 0, _Extension()
    while header := file.read(offset, BLOCK):
        if not header.strip(b"\0"):
            break
        try:
            name, kind, size = _parse(header)
        except ValueError:
            place = "no tar header" if not offset else "damaged header"
            raise DamagedTar(f"{place} at byte {offset}") from None
        data = offset + BLOCK
        if kind in _EXTENSIONS:
            content = _extension_data(file, data, size, file_size)
            if kind == _LONG_NAME and extension.name is None:
                extension.name = content.partition(b"\0")[0]
            elif kind in _PAX:
                _read_pax(content, extension, offset)
            extension.pending |= kind != _PAX_GLOBAL
            offset = _behind(data, size, file_size)
            continue
        if kind == SPARSE:
            data = _behind_sparse_map(file, header, data)
        if extension.name is not None:
            name = extension.name
        if extension.size is not None:
            size = extension.size
        if len(name) > _MAX_NAME:
            raise DamagedTar(f"a name of {len(name)} bytes at byte {offset}")
        if kind == b"\0" and name.endswith(b"/"):
            kind = DIRECTORY
        offset = _behind(data, 0 if kind in _WITHOUT_DATA else size, file_size)
        yield Member(name, kind, data, size, kind == SPARSE or extension.sparse)
        extension = _Extension()
    if extension.pending:
        raise DamagedTar(f"no member follows the extended header before byte {offset}")
    if not offset and not file_size:
        raise DamagedTar("the file is empty")
    return offset


def _parse(header: bytes) -> tuple[bytes, bytes, int]:
    """Return name, type flag and size of a header.

    Raises:
      ValueError: it is not one.
    """
    if len(header) < BLOCK:
        raise ValueError("truncated")
    checksum = _number(header[148:156])
    others = header[:148] + header[156:]
    total = sum(others) + 8 * ord(" ")
    # Some old programs add bytes up as signed numbers.
    if checksum != total and checksum != total - 256 * sum(b > 127 for b in others):
        raise ValueError("bad checksum")
    name, kind = header[:100].partition(b"\0")[0], header[156:157]
    if header[345] and kind not in (SPARSE, _LONG_NAME, _LONG_LINK):
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return name, kind, _number(header[124:136])


def _number(field: bytes) -> int:
    """Read a number: octal digits, or binary behind a byte 0x80.

    Raises:
      ValueError: the field holds something else, or a negative number.
    """
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    if not digits:
        return 0
    if not digits.isdigit():
        raise ValueError("no number")
    return int(digits, 8)


def _behind(data: int, size: int, file_size: int) -> int:
    """Return the offset behind a member's data, which the file must hold."""
    end = data + -(-size // BLOCK) * BLOCK
    if end > file_size:
        raise DamagedTar(
            f"unexpected end of data: {end} bytes expected, {file_size} there"
        )
    return end


def _extension_data(file: ReadAhead, offset: int, size: int, file_size: int) -> bytes:
    """Read the data of an extended header."""
    if size > _MAX_EXTENSION:
        raise DamagedTar(f"an extended header of {size} bytes before byte {offset}")
    _behind(offset, size, file_size)
    return file.read(offset, size)


def _read_pax(content: bytes, extension: _Extension, offset: int) -> None:
    """Read the records of a pax header: LENGTH, space, KEYWORD=VALUE, line feed."""
    position = 0
    while position < len(content) and content[position]:
        digits, _, _ = content[position : position + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = content[position : position + length]
        keyword, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or not record.endswith(b"\n"):
            raise DamagedTar(f"damaged pax header at byte {offset}")
        if keyword == b"path" and extension.name is None:
            extension.name = value.rstrip(b"/")
        elif keyword == b"size" and extension.size is None:
            if not value.isdigit() or len(value) > 20:
                raise DamagedTar(f"damaged size in the pax header at byte {offset}")
            extension.size = int(value)
        elif keyword.startswith(b"GNU.sparse."):
            extension.sparse = True
        position += length


def _behind_sparse_map(file: ReadAhead, header: bytes, data: int) -> int:
    """Return the offset of the data of a GNU sparse member, behind its further maps."""
    more = header[482]
    while more:
        block = file.read(data, BLOCK)
        if len(block) < BLOCK:
            raise DamagedTar(f"unexpected end of a sparse file's map at byte {data}")
        more, data = block[504], data + BLOCK
    return data
