"""The data loaders of torchvision and webdataset; `harness` starts this module.

Every contestant decodes the JPEGs of the same tars, takes a random resized crop
(bicubic, with antialiasing), flips and normalises it. Needs torch, torchvision and
webdataset.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torchvision
from torchvision.transforms import v2

from benchmarks import harness

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def main() -> None:
    """Serve a loader."""
    torch.set_num_threads(1)
    harness.serve(
        {"pillow": PillowLoader, "tensors": TensorLoader, "webdataset": WebLoader}
    )


def transform(size: int) -> list[Any]:
    """Return the transforms between the decoded image and the batch."""
    crop = v2.RandomResizedCrop(
        size,
        scale=(0.5, 1.0),
        interpolation=v2.InterpolationMode.BICUBIC,
        antialias=True,
    )
    return [
        crop,
        v2.RandomHorizontalFlip(),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(_MEAN, _STD),
    ]


class Loader:
    """A loader of the photos of some tars, in this process."""

    def __init__(self, tars: Sequence[str], count: int, size: int) -> None:
        """Prepare a loader of all `count` photos; the parts are set by subclasses."""
        self.tars, self.count = list(tars), count
        self.transform = v2.Compose(transform(size))

    def batches(self, rows: int) -> Iterable[torch.Tensor]:
        """Return the batches of an epoch."""
        raise NotImplementedError

    def versions(self) -> str:
        """Return the versions of the libraries."""
        return harness.versions("torch", "torchvision")

    def load(self, rows: int = 8) -> float:
        """Load all photos in batches; returns the seconds."""
        return harness.seconds(lambda: self._load(rows))[0]

    def _load(self, rows: int) -> None:
        loaded = sum(len(batch) for batch in self.batches(rows))
        assert loaded == self.count


class PillowLoader(Loader):
    """torchvision's transforms of Pillow images in a torch DataLoader."""

    def __init__(self, tars: Sequence[str], count: int, size: int) -> None:
        """Read the photos' bytes."""
        super().__init__(tars, count, size)
        self._files = harness.photos(tars, count)

    def batches(self, rows: int) -> Iterable[torch.Tensor]:
        """Return the batches of an epoch; see `Loader`."""
        return torch.utils.data.DataLoader(_Photos(self._files, self.read), rows)

    def read(self, data: bytes) -> torch.Tensor:
        """Decode and transform a photo."""
        import io

        from PIL import Image

        return self.transform(Image.open(io.BytesIO(data)).convert("RGB"))


class TensorLoader(PillowLoader):
    """torchvision's decoder and its transforms of uint8 tensors."""

    def read(self, data: bytes) -> torch.Tensor:
        """Decode and transform a photo."""
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        mode = torchvision.io.ImageReadMode.RGB
        return self.transform(torchvision.io.decode_jpeg(encoded, mode))


class WebLoader(Loader):
    """webdataset with torchvision's transforms of Pillow images."""

    def batches(self, rows: int) -> Iterable[torch.Tensor]:
        """Return the batches of an epoch; see `Loader`."""
        import webdataset

        dataset = (
            webdataset.WebDataset(self.tars, shardshuffle=False)
            .decode("pil")
            .to_tuple("jpg")
            .map_tuple(self.transform)
            .batched(rows)
        )
        for (batch,) in webdataset.WebLoader(dataset, batch_size=None, num_workers=0):
            yield batch

    def versions(self) -> str:
        """Return the versions of the libraries."""
        import webdataset  # noqa: F401

        return harness.versions("webdataset")


class _Photos(torch.utils.data.Dataset):
    """Encoded photos that a function decodes."""

    def __init__(self, files: Sequence[tuple[str, bytes]], read: Any) -> None:
        self._files, self._read = files, read

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._read(self._files[index][1])


if __name__ == "__main__":
    main()
