"""Open objects of a store as files: read by ranges, written as a whole."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from typing import Any

_READ_AHEAD = 2**20  # bytes


def open_ranges(
    read_range: Callable[[int, int], bytes], size: int, name: str
) -> io.BufferedReader:
    """Return a file for reading whose content is fetched as it is read.

    Args:
      read_range: reads from an offset a number of bytes.
      size: of the object, in bytes.
      name: of the object.
    """
    return io.BufferedReader(_RangeReader(read_range, size, name), _READ_AHEAD)


class _RangeReader(io.RawIOBase):
    """The unbuffered file of `open_ranges`."""

    def __init__(
        self, read_range: Callable[[int, int], bytes], size: int, name: str
    ) -> None:
        self._read_range, self._size, self._position = read_range, size, 0
        self.name = name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}
        self._position = max(0, start[whence] + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._size - self._position)
        if size <= 0:
            return 0
        data = self._read_range(self._position, size)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class Upload(io.BufferedWriter):
    """A local temporary file that is uploaded when it is closed without an error.

    Args:
      upload: uploads the file of a path.
    """

    def __init__(self, upload: Callable[[str], None]) -> None:
        self._upload = upload
        self._temporary = tempfile.NamedTemporaryFile(prefix="blip2_jax-")  # noqa: SIM115
        super().__init__(io.FileIO(self._temporary.name, "r+b"))

    def __exit__(self, *error: Any) -> None:
        """Close the file; an error in the block leaves the object as it was."""
        self.close(upload=error[0] is None)

    def close(self, upload: bool = True) -> None:
        """Upload the content and delete the temporary file."""
        if self.closed:
            return
        super().close()
        try:
            if upload:
                self._upload(self._temporary.name)
        finally:
            self._temporary.close()


class TextUpload(io.TextIOWrapper):
    """Text over an `Upload`."""

    def __exit__(self, *error: Any) -> None:
        """Close the file; see `Upload`."""
        if error[0] is None:
            self.close()
        else:
            self.detach().close(upload=False)  # type: ignore[call-arg]
