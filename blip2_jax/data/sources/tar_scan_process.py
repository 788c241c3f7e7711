"""A process that scans the tars that it reads from its standard input."""

from __future__ import annotations

import json
import pathlib
import sys

from blip2_jax.data.sources.tar_index import scan_tar, write_tar_index
from blip2_jax.parallel.paths import as_path


def scan_to_file(tar: pathlib.Path, index: pathlib.Path) -> str:
    """Scan a tar and write its index; return what is wrong, "" if nothing is."""
    try:
        write_tar_index(index, scan_tar(tar))
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def main() -> None:
    """Scan the tar of each line `[tar, index]`; answer with its problem as JSON."""
    for line in sys.stdin:
        tar, index = json.loads(line)
        print(json.dumps(scan_to_file(as_path(tar), pathlib.Path(index))), flush=True)


if __name__ == "__main__":
    main()
