"""Download of images from http(s) URLs, and decoding of data URLs."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request

MAX_BYTES = 50_000_000
TIMEOUT = 20.0  # seconds, for the whole download
_CHUNK = 1 << 16
_SCHEMES = ("http", "https", "data")
# Some servers refuse urllib's own name.
_HEADERS = {"User-Agent": "blip2_jax", "Accept": "image/*"}


def is_url(text: str) -> bool:
    """Return True for http, https and data URLs."""
    scheme, colon, _ = text.partition(":")
    return bool(colon) and scheme.lower() in _SCHEMES


def shorten_url(url: str) -> str:
    """Return a URL for messages; data URLs are long."""
    return url if len(url) <= 100 else f"{url[:60]}... ({len(url)} characters)"


def read_url(
    url: str,
    *,
    opener: urllib.request.OpenerDirector | None = None,
    max_bytes: int | None = None,
) -> bytes:
    """Read the file at a URL.

    Args:
      url: http, https or data URL.
      opener: opens http(s) URLs; None: that of urllib.
      max_bytes: size of the largest file that is downloaded; None: `MAX_BYTES`.

    Raises:
      ValueError: it cannot be read, takes longer than `TIMEOUT` or has more than
        `max_bytes`. The message names the URL.
    """
    try:
        if url[:5].lower() == "data:":
            return _read_data_url(url)
        opener = opener or urllib.request.build_opener()
        return _download(url, opener, max_bytes or MAX_BYTES)
    except urllib.error.HTTPError as error:
        reason = f"the server answered {error.code} {error.reason}"
    except TimeoutError:
        reason = f"no complete answer within {TIMEOUT:g} seconds"
    except urllib.error.URLError as error:
        timed_out = isinstance(error.reason, TimeoutError)
        reason = (
            f"no answer within {TIMEOUT:g} seconds" if timed_out else str(error.reason)
        )
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
    raise ValueError(f"cannot read the image {shorten_url(url)}: {reason}")


def _download(url: str, opener: urllib.request.OpenerDirector, max_bytes: int) -> bytes:
    """Read an http(s) URL within the limits of time and size."""
    deadline = time.monotonic() + TIMEOUT
    request = urllib.request.Request(url, headers=_HEADERS)
    data = bytearray()
    with opener.open(request, timeout=TIMEOUT) as response:
        # One call of `read` could wait for ever for a server that sends slowly.
        while chunk := response.read1(_CHUNK):
            data += chunk
            if len(data) > max_bytes:
                raise ValueError(f"it is larger than {max_bytes / 1e6:g} MB")
            if time.monotonic() > deadline:
                raise TimeoutError
        expected = response.headers.get("Content-Length", "")
    if expected.isdigit() and len(data) < int(expected):
        raise ValueError(f"only {len(data)} of {expected} bytes arrived")
    return bytes(data)


def _read_data_url(url: str) -> bytes:
    """Decode a data URL: percent-encoded, or base64 without white space."""
    with urllib.request.urlopen(url) as response:
        return response.read()
