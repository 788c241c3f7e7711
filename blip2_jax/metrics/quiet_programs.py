"""Keep back what programs that a library starts write to the terminal."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator

_STDOUT, _STDERR = 1, 2


@contextlib.contextmanager
def quiet_programs() -> Iterator[None]:
    """Keep back the output of this process and of those that it starts.

    If the block raises an error, the output is written to stderr: it says why the
    program failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as log, contextlib.redirect_stdout(io.StringIO()):
        saved = {number: os.dup(number) for number in (_STDOUT, _STDERR)}
        failed = True
        try:
            for number in saved:
                os.dup2(log.fileno(), number)
            yield
            failed = False
        finally:
            for number, original in saved.items():
                os.dup2(original, number)
                os.close(original)
            if failed:
                log.seek(0)
                print(log.read().decode(errors="replace"), end="", file=sys.stderr)
