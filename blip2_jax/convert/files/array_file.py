"""A file of arrays, which is at hand or is downloaded when an array of it is read."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Mapping, Sequence
from types import EllipsisType

import numpy as np

from blip2_jax.convert.files.digests import digest

# A part of an array: one slice per axis, or all of it.
Index = tuple[slice, ...] | EllipsisType
Spec = tuple[tuple[int, ...], np.dtype]  # shape and dtype


class ArrayFile(abc.ABC):
    """One file of arrays."""

    @abc.abstractmethod
    def names(self) -> list[str]:
        """Return the names of its arrays."""

    @abc.abstractmethod
    def read(self, name: str, index: Index = ...) -> np.ndarray:
        """Read an array, or its part at `index`; the result may view the file."""

    def digest(self, name: str) -> str:
        """Return the digest of an array's values."""
        return digest(self.read(name))

    @abc.abstractmethod
    def spec(self, name: str) -> Spec:
        """Return shape and dtype of an array without reading it."""


class RemoteFile(ArrayFile):
    """A file that is downloaded when an array of it is read."""

    def __init__(
        self,
        fetch: Callable[[], ArrayFile],
        read_header: Callable[[], Mapping[str, Spec]] | None,
        names: Sequence[str] | None,
    ) -> None:
        """Keep how to get the file.

        Args:
          fetch: downloads and opens it.
          read_header: reads the shapes and dtypes without the arrays; None: the format
            has no such header, and the whole file is downloaded for them.
          names: of its arrays, by an index; None: those of the header.
        """
        self._fetch, self._read_header, self._names = fetch, read_header, names

    def names(self) -> list[str]:
        """Return the names of its arrays."""
        if self._names is not None:
            return list(self._names)
        return list(self._specs) if self._read_header else self._file.names()

    def read(self, name: str, index: Index = ...) -> np.ndarray:
        """Read an array, or the part at `index`."""
        return self._file.read(name, index)

    def digest(self, name: str) -> str:
        """Return the digest of an array's values."""
        return self._file.digest(name)

    def spec(self, name: str) -> Spec:
        """Return shape and dtype of an array without reading it."""
        return self._specs[name] if self._read_header else self._file.spec(name)

    @functools.cached_property
    def _file(self) -> ArrayFile:
        return self._fetch()

    @functools.cached_property
    def _specs(self) -> Mapping[str, Spec]:
        assert self._read_header is not None
        return self._read_header()
