"""Tars in all forms, and seeded mutations of them for fuzzing."""

import io
import random
import tarfile
from collections.abc import Iterator

from tests.support.generated_data import encoded, picture

BLOCK = 512
RECORDS = 4
_LONG = "folder/" * 30  # longer than a header holds


def whole_tars() -> dict[str, bytes]:
    """Return tars of a few records by form: ustar, GNU and pax, long names, links."""
    return {
        "ustar": _tar(tarfile.USTAR_FORMAT, "folder"),
        "gnu": _tar(tarfile.GNU_FORMAT, _LONG),
        "pax": _tar(tarfile.PAX_FORMAT, _LONG + "\u732b"),
        "sparse": _sparse_tar(),
    }


def _tar(form: int, folder: str) -> bytes:
    image = encoded(picture(0), "JPEG")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for number in range(RECORDS):
            for suffix, data in (
                ("jpg", image),
                ("txt", b"a red thing"),
                ("json", b'{"caption": "red", "status": "success"}'),
            ):
                info = tarfile.TarInfo(f"{folder}/{number:05d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo(f"{folder}/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, f"{folder}/00000.jpg"
        tar.addfile(link)
        directory = tarfile.TarInfo(f"{folder}/more")
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
    return file.getvalue()


def _sparse_tar() -> bytes:
    """Return a tar with a GNU sparse member whose map continues in another block."""
    info = tarfile.TarInfo("0.jpg")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, BLOCK
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1
    header[483:495] = b"%011o\0" % 4096
    map_block = b"%011o\0%011o\0" % (4096, 0) + bytes(BLOCK - 24)
    last = _tar(tarfile.GNU_FORMAT, "folder")
    return with_checksum(bytes(header)) + map_block + b"s" * BLOCK + last


def with_checksum(header: bytes) -> bytes:
    """Return a header with the checksum that belongs to its bytes."""
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(blank) + header[156:]


def mutations(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield `count` mutated tars and what was done to them."""
    rng = random.Random(seed)
    tars = whole_tars()
    for number in range(count):
        form = rng.choice(list(tars))
        name = rng.choice(list(_MUTATIONS))
        content = tars[form]
        for _ in range(rng.choice((1, 1, 2, 4))):
            content = _MUTATIONS[name](rng, content)
        yield f"{number} {form} {name}", content


def _block(rng: random.Random, content: bytes) -> int:
    """Choose the offset of a block, half of the time of a header."""
    headers = [
        offset
        for offset in range(0, len(content), BLOCK)
        if content[offset + 257 : offset + 262] == b"ustar"
    ]
    if headers and rng.random() < 0.5:
        return rng.choice(headers)
    return rng.randrange(max(len(content) // BLOCK, 1)) * BLOCK


def _replaced(content: bytes, offset: int, data: bytes) -> bytes:
    return content[:offset] + data + content[offset + len(data) :]


def _flip_bits(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 4, 16))):
        offset = min(_block(rng, content) + rng.randrange(BLOCK), len(content) - 1)
        changed[offset] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(1, len(content) + 1)]


def _duplicate_blocks(rng: random.Random, content: bytes) -> bytes:
    start = _block(rng, content)
    end = start + rng.choice((1, 2, 3, 8, 200)) * BLOCK
    position = _block(rng, content)
    return content[:position] + content[start:end] + content[position:]


def _remove_blocks(rng: random.Random, content: bytes) -> bytes:
    start = _block(rng, content)
    return content[:start] + content[start + BLOCK :] or content


def _blank_block(rng: random.Random, content: bytes) -> bytes:
    return _replaced(content, _block(rng, content), bytes(BLOCK))


_SIZES = (
    b"77777777777\0",  # 8 GiB
    b"00000000777\0",
    b"-0000000777\0",
    b"99999999999\0",
    b"\x80" + b"\xff" * 11,  # binary, 2^88
    b"\x80" + bytes(7) + b"\x7f\xff\xff\xff",
    b"\xff" * 12,  # -1
    b"\xff" * 10 + b"\xfc\0",  # -1024, two blocks back
)


def _change_size(rng: random.Random, content: bytes) -> bytes:
    return _change_field(rng, content, 124, rng.choice(_SIZES))


def _change_kind(rng: random.Random, content: bytes) -> bytes:
    kind = rng.choice((*b"0123456789LKxXgSNVDM\0", rng.randrange(256)))
    return _change_field(rng, content, 156, bytes([kind]))


def _change_header_byte(rng: random.Random, content: bytes) -> bytes:
    offset, byte = rng.randrange(BLOCK), bytes([rng.randrange(256)])
    return _change_field(rng, content, offset, byte)


def _change_field(
    rng: random.Random, content: bytes, offset: int, value: bytes
) -> bytes:
    """Change a field of a header and make its checksum fit."""
    start = _block(rng, content)
    header = content[start : start + BLOCK].ljust(BLOCK, b"\0")
    return _replaced(content, start, with_checksum(_replaced(header, offset, value)))


def _change_pax_record(rng: random.Random, content: bytes) -> bytes:
    """Change a number or keyword in the text of a pax header, if there is one."""
    places = [n for n in range(len(content)) if content.startswith(b" path=", n)]
    if not places:
        return _change_kind(rng, content)
    place = rng.choice(places)
    value = rng.choice((b"99", b"00", b" 9", b"-1", b"9" * 30, b"\n\n", b"=="))
    target = place - 3 if rng.random() < 0.6 else place + rng.randrange(1, 6)
    return _replaced(content, target, value)


_MUTATIONS = {
    "flip bits": _flip_bits,
    "truncate": _truncate,
    "duplicate blocks": _duplicate_blocks,
    "remove blocks": _remove_blocks,
    "blank block": _blank_block,
    "size": _change_size,
    "kind": _change_kind,
    "header byte": _change_header_byte,
    "pax record": _change_pax_record,
}
