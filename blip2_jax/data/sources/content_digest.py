"""Digests of what a source holds, by which a run notices that its data changed.

Texts are hashed in full. Files are compared by size, and a sample of them by content,
so that the cost does not grow with the images: at most `MAX_STATED` files are asked for
their size, and the first `MAX_BYTES` of at most `MAX_READ` are read.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import pathlib
import stat
from collections.abc import Iterable, Iterator, Sequence

from blip2_jax.parallel.paths import is_remote, read_range

MAX_STATED, MAX_READ, MAX_BYTES = 20_000, 256, 2**20
_REQUESTS = 32  # that a store answers at once
MAX_SAMPLED_RECORDS = 1024  # of a source whose texts are not in memory

# Parts of a fingerprint; the names are read by users.
TEXTS = "texts and their order"
TEXTS_SAMPLE = "texts (sample)"
SIZES, TIMES = "file sizes", "file times"
FILES_SAMPLE = "file contents (sample)"

Digests = dict[str, str]


def evenly_spaced(count: int, most: int) -> list[int]:
    """Return up to `most` indices of `count` elements, at even distances."""
    if count <= most:
        return list(range(count))
    return [index * count // most for index in range(most)]


def hash_parts(parts: Iterable[bytes | memoryview]) -> str:
    """Return the SHA-256 of a sequence of byte strings and their lengths."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(b"%d:" % len(part))
        sha.update(part)
    return sha.hexdigest()


def file_digests(paths: Sequence[pathlib.Path], prefix: str = "image ") -> Digests:
    """Return digests of sizes, times and sampled contents of files.

    A copy of the same files has other times, so that times alone prove nothing.

    Args:
      paths: the files, of which `MAX_STATED` and `MAX_READ` are sampled.
      prefix: of the parts' names.
    """
    sizes, times = [], []
    stated = [paths[index] for index in evenly_spaced(len(paths), MAX_STATED)]
    for size, time in _sizes_and_times(stated):
        sizes.append(b"%d" % size)
        times.append(b"%d" % time)
    heads = (_head(paths[index]) for index in evenly_spaced(len(paths), MAX_READ))
    return {
        prefix + SIZES: hash_parts(sizes),
        prefix + TIMES: hash_parts(times),
        prefix + FILES_SAMPLE: hash_parts(heads),
    }


def without_times(digests: Digests) -> Digests:
    """Return the digests that are the same for a copy of the same files."""
    return {part: d for part, d in digests.items() if not part.endswith(TIMES)}


def _sizes_and_times(paths: Sequence[pathlib.Path]) -> Iterator[tuple[int, int]]:
    """Yield `_size_and_time` of each path; a store is asked for many at once."""
    if not any(map(is_remote, paths)):
        yield from map(_size_and_time, paths)
        return
    with concurrent.futures.ThreadPoolExecutor(_REQUESTS) as threads:
        yield from threads.map(_size_and_time, paths)


def _size_and_time(path: pathlib.Path) -> tuple[int, int]:
    """Return size and time of a file; -1 for what is no file or cannot be read.

    The times of objects on a store are those of their upload, in seconds.
    """
    try:
        state = path.stat()
    except (OSError, ValueError):  # ValueError: a name with NUL
        return -1, -1
    if not stat.S_ISREG(state.st_mode):
        return -1, -1
    return state.st_size, state.st_mtime_ns


def _head(path: pathlib.Path) -> bytes:
    """Return the beginning of a file; b"" for what is no file or cannot be read."""
    if _size_and_time(path)[0] < 0:  # reading a pipe would block
        return b""
    try:
        return read_range(path, 0, MAX_BYTES)
    except OSError:
        return b""
