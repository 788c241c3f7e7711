"""Reading of a file at growing offsets, in blocks that adapt to the gaps."""

from __future__ import annotations

from collections.abc import Callable

ReadAt = Callable[[int, int], bytes]  # of an offset and a size; fewer bytes at the end


class ReadAhead:
    """A file that is read at growing offsets, a few bytes at a time.

    Where one read follows closely upon the other, blocks grow, so that few of them are
    read. Where large gaps lie between them, blocks are small, so that the gaps are not
    read.

    Args:
      read: reads a part of the file.
      smallest: size of the first block and of those behind a gap, in bytes.
      largest: size to which blocks grow.
    """

    def __init__(self, read: ReadAt, smallest: int, largest: int):
        self._read, self._smallest, self._largest = read, smallest, largest
        self._block = smallest
        self._start, self._data = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        """Read `size` bytes at an offset; fewer if the file ends before."""
        begin = offset - self._start
        if begin < 0 or begin + size > len(self._data):
            self._fetch(offset, size)
            begin = 0
        return self._data[begin : begin + size]

    def _fetch(self, offset: int, size: int) -> None:
        """Read the block that begins at an offset."""
        gap = offset - self._start - len(self._data)
        if gap <= self._block:
            self._block = min(2 * self._block, self._largest)
        else:
            self._block = self._smallest
        self._start, self._data = offset, self._read(offset, max(size, self._block))
