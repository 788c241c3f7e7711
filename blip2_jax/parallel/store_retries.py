"""Repeating what an object store failed to do: what passes, how often, how long.

A dropped connection, a time-out, "too many requests" and an error of the server (5xx)
pass. The operation is repeated after a growing, random wait, and counted, until the
total time in `BLIP2_JAX_STORE_PATIENCE_S` (600 s) is over. A missing object and a
missing permission do not pass and are raised at once.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

PATIENCE = "BLIP2_JAX_STORE_PATIENCE_S"
DEFAULT_PATIENCE_S = 600.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 30.0

T = TypeVar("T")
logger = logging.getLogger(__name__)

_PASSING_STATUS = frozenset({408, 429})
# Codes of S3 that come with a status below 500.
_PASSING_CODES = frozenset(
    {"RequestTimeout", "RequestTimeTooSkewed", "SlowDown", "Throttling", "EBUSY"}
)
# Names of the base classes, because the libraries are optional: connections that
# botocore, aiohttp, requests and urllib3 lose.
_PASSING_TYPES = frozenset(
    {
        "botocore.exceptions.HTTPClientError",
        "botocore.exceptions.ConnectionError",
        "botocore.exceptions.ResponseStreamingError",
        "botocore.exceptions.IncompleteReadError",
        "botocore.parsers.ResponseParserError",
        "aiohttp.client_exceptions.ClientConnectionError",
        "aiohttp.client_exceptions.ClientPayloadError",
        "http.client.IncompleteRead",
        "requests.exceptions.ConnectionError",
        "requests.exceptions.Timeout",
        "requests.exceptions.ChunkedEncodingError",
        "urllib3.exceptions.HTTPError",
    }
)


class StoreError(RuntimeError):
    """An object store was away for too long; the message says which path and why.

    It is no OSError, because one file that cannot be read may be left out of a batch,
    and a store that is away may not.
    """


class _Retries:
    """The number of repeated operations of this process, and its last outage."""

    def __init__(self) -> None:
        self.count = 0
        self.gave_up = False
        self._lock = threading.Lock()

    def add(self, count: int = 1) -> None:
        with self._lock:
            self.count += count

    def take(self) -> int:
        with self._lock:
            count, self.count = self.count, 0
        return count


_RETRIES = _Retries()


def retry_count() -> int:
    """Return how many operations on stores this process has repeated."""
    return _RETRIES.count


def take_retry_count() -> int:
    """Return `retry_count` and set it to 0, to send it to another process."""
    return _RETRIES.take()


def add_retries(count: int) -> None:
    """Add the count that another process took."""
    _RETRIES.add(count)


def patience_s() -> float:
    """Return for how many seconds an operation is repeated.

    Raises:
      ValueError: the environment variable is no number.
    """
    text = os.environ.get(PATIENCE, "")
    try:
        return float(text) if text else DEFAULT_PATIENCE_S
    except ValueError:
        raise ValueError(f"{PATIENCE} is {text!r}, but must be seconds") from None


def with_retries(operation: Callable[[], T], what: object) -> T:
    """Call a function again and again while its errors are of those that pass.

    After an outage that was too long it is called once only, until a call succeeds: a
    run that ends by the outage does not wait a second time.

    Args:
      operation: the function; it must be safe to call it again after it failed.
      what: name of the file or directory, for messages.

    Returns:
      Its result.

    Raises:
      StoreError: it still failed when the patience was over.
      Exception: an error that does not pass, at once.
    """
    start = time.monotonic()
    patience = 0.0 if _RETRIES.gave_up else patience_s()
    for wait in _waits():
        try:
            result = operation()
            _RETRIES.gave_up = False
            return result
        except Exception as error:
            if not passes(error):
                raise
            tried = time.monotonic() - start
            if tried + wait > patience:
                _RETRIES.gave_up = True
                raise StoreError(
                    f"{what}: the store has failed for {tried:.0f} s (the limit is "
                    f"{patience_s():g} s, {PATIENCE}); the last error was "
                    f"{type(error).__name__}: {error}"
                ) from error
            _RETRIES.add()
            logger.warning(
                "%s: %s: %s; trying again", what, type(error).__name__, error
            )
        time.sleep(wait)
    raise AssertionError("the waits do not end")


def _waits() -> Iterator[float]:
    """Yield waits that double up to the longest, each between half and all of it."""
    longest = FIRST_WAIT_S
    while True:
        yield longest * random.uniform(0.5, 1.0)
        longest = min(2 * longest, LONGEST_WAIT_S)


def passes(error: BaseException) -> bool:
    """Return True if an error may be gone when the operation is repeated."""
    chain = list(_chain(error))
    if any(isinstance(e, FileNotFoundError | PermissionError) for e in chain):
        return False
    return any(map(_passes_alone, chain))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes: fsspec wraps those of the libraries."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _passes_alone(error: BaseException) -> bool:
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    status, code = _status(error)
    if status is not None:
        return status >= 500 or status in _PASSING_STATUS or code in _PASSING_CODES
    names = {f"{t.__module__}.{t.__qualname__}" for t in type(error).__mro__}
    return not names.isdisjoint(_PASSING_TYPES)


def _status(error: BaseException) -> tuple[int | None, str]:
    """Return the HTTP status and the code that an error carries; (None, "") if none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status, str(response.get("Error", {}).get("Code", ""))
    for value in (
        getattr(error, "status", None),  # aiohttp
        getattr(error, "code", None),  # gcsfs
        getattr(response, "status_code", None),  # requests
    ):
        if str(value).isdigit():
            return int(str(value)), ""
    return None, ""
