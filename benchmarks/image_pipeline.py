"""Time the path from photos to training batches on one core.

    python -m benchmarks.image_pipeline --photos DIR_OR_TAR [--photos ...] --lavis PATH

Real JPEGs, held in memory, to normalised batches of 8 at 224 px: decode, random resized
crop (bicubic), flip, normalise. Ours is the path of training (`data/images.py`, then
the device's normalisation); the original's is its `Blip2ImageTrainProcessor` in a torch
DataLoader. Each process has one core.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys

from benchmarks import harness

SIZE, COUNT = 224, 80
HEAD = ("photos", "", "images/s/core", "ratio")
TITLE = "Image pipeline"


def main() -> int:
    """Time one set of photos after the other."""
    parser = harness.arguments(__doc__ or "", rounds=5)
    add = parser.add_argument
    add(
        "--photos",
        action="append",
        required=True,
        help="tar of JPEGs, or folder of tars",
    )
    options = parser.parse_args()
    options.threads = 1
    rows, versions = [], ""
    for photos in options.photos:
        tars = [str(path) for path in tars_of(pathlib.Path(photos))]
        files = harness.photos(tars, COUNT)
        settings = {"tars": tars, "count": COUNT, "size": SIZE}
        with contextlib.ExitStack() as stack:
            workers = [
                stack.enter_context(worker)
                for worker in harness.pair(options, "images", settings)
            ]
            versions = ", ".join(worker.ask("versions") for worker in workers)
            times = harness.take_turns(workers, "load", options.rounds)
        name = f"{len(files)} of {pathlib.Path(photos).name}, {describe(files)}"
        slowest = times[workers[-1].name]
        for worker in workers:
            taken = times[worker.name]
            rows.append(
                [
                    name,
                    worker.name,
                    f"{len(files) / taken:.0f}",
                    f"{slowest / taken:.2f}",
                ]
            )
    harness.report(options, TITLE, f"{versions}; {SIZE} px.", harness.table(HEAD, rows))
    return 0


def tars_of(path: pathlib.Path) -> list[pathlib.Path]:
    """Return the path of a tar, or of the tars in a folder.

    Raises:
      ValueError: there is no tar.
    """
    tars = [path] if path.is_file() else sorted(path.glob("*.tar"))
    if not tars:
        raise ValueError(f"--photos={path}: no tar there")
    return tars


def describe(files: list[tuple[str, bytes]]) -> str:
    """Return the median sides of the photos."""
    import io
    import statistics

    from PIL import Image

    sizes = [Image.open(io.BytesIO(data)).size for _, data in files]
    width, height = (statistics.median(side) for side in zip(*sizes, strict=True))
    return f"{width:.0f} x {height:.0f}"


if __name__ == "__main__":
    sys.exit(main())
