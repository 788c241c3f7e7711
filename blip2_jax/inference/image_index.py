"""Search of images by text: an index of their vectors, and re-ranking of the best.

    index = ImageIndex.build(model, "photos", "photos.index")
    [hits] = index.search("a dog on a beach")

The index holds the contrastive vectors of every image (ITC), 4 Q C bytes each. A query
takes the cosine with each image; the best are read again and scored by the matching
head (ITM), as in the evaluation of retrieval.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import filelock
import jax
import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from blip2_jax.data.prefetch import in_batches
from blip2_jax.inference import inputs
from blip2_jax.inference.gallery import Gallery, Loaded, open_gallery
from blip2_jax.inference.index_files import IndexFiles, create_index, is_index
from blip2_jax.inference.model import Blip2
from blip2_jax.inference.retriever import Blip2Retriever
from blip2_jax.nn.similarity import max_query_similarity
from blip2_jax.parallel import hosts
from blip2_jax.parallel.paths import is_remote
from blip2_jax.parallel.progress import WorkProgress

TOP, RERANKED = 10, 32  # defaults of a search
_BLOCK = 4096  # images that are compared at once
# The parameters that make the vectors and are trained together.
_OWN_PARAMETERS = ("query_tokens", "ln_vision", "vision_projection", "text_projection")


class Hit(NamedTuple):
    """An image that a search found.

    Attributes:
      name: the image, relative to the folder of the index.
      itc: cosine between the text and the nearest query of the image.
      itm: probability that image and text match; None: it was not re-ranked.
    """

    name: str
    itc: float
    itm: float | None = None


class Changes(NamedTuple):
    """What an update of an index did: numbers of images."""

    added: int
    changed: int
    removed: int


class ImageIndex:
    """An index of the images of a folder for one stage-1 model.

    `build` and `open` make it.

    Attributes:
      folder: of the images.
      last_changes: of `build` and `update`.
    """

    def __init__(self, model: Blip2Retriever, directory: pathlib.Path):
        self._model, self._directory = model, directory
        self.last_changes = Changes(0, 0, 0)
        self._open_files()
        self.folder: str = self._files.settings["folder"]
        vision = model.model.config.vision
        self._gallery: Gallery = open_gallery(self.folder, vision)

    @classmethod
    def build(
        cls, model: Blip2, folder: str | pathlib.Path, directory: str | pathlib.Path
    ) -> ImageIndex:
        """Index the images of a folder, or continue or update an index of it.

        A build that was stopped continues. Images that were added or changed since are
        encoded, those that have gone are removed.

        Args:
          model: a stage-1 model.
          folder: images, with those of sub-folders; or, for a model that was trained on
            features, the folder that `blip2-jax features` wrote.
          directory: of the index.

        Raises:
          FileNotFoundError: there is no such folder, or no image in it.
          ValueError: the model is of stage 2, or the index is of another model or
            folder, or is being written by another process.
        """
        path, retriever = _local(directory), _retriever(model)
        gallery = open_gallery(str(folder), retriever.model.config.vision)
        if not is_index(path):
            if not gallery.stamps():
                raise FileNotFoundError(f"no image in {folder}")
            sizes = retriever.model.config.qformer
            settings = {"folder": gallery.folder, "model": fingerprint(retriever)}
            create_index(path, settings, (sizes.num_queries, sizes.projection_dim))
        index = cls.open(retriever, path)
        if index.folder != gallery.folder:
            raise ValueError(
                f"{directory} is an index of {index.folder}, not of {gallery.folder}"
            )
        index.update()
        return index

    @classmethod
    def open(cls, model: Blip2, directory: str | pathlib.Path) -> ImageIndex:
        """Open an index as it is.

        Args:
          model: the model that built it.
          directory: of the index.

        Raises:
          FileNotFoundError: there is no index, or its images have gone.
          ValueError: the model is of stage 2, or another one built the index, or a file
            of it is damaged.
        """
        path, retriever = _local(directory), _retriever(model)
        if IndexFiles(path).settings["model"] != fingerprint(retriever):
            raise ValueError(f"{directory} is the index of another model")
        return cls(retriever, path)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def broken(self) -> dict[str, str]:
        """Names of the images that cannot be read, and why."""
        entries = self._files.entries.items()
        return {name: entry.broken for name, entry in entries if entry.broken}

    def path(self, name: str) -> pathlib.Path:
        """Return the path of an image of the folder."""
        return pathlib.Path(self.folder) / name

    def update(self) -> Changes:
        """Encode images that were added or changed, and remove those that have gone.

        Raises:
          ValueError: another process is writing the index.
        """
        lock = filelock.FileLock(self._directory / "lock")
        try:
            with lock.acquire(timeout=0):
                self._files = IndexFiles(self._directory)
                self._files.repair()
                self.last_changes = self._update()
        except filelock.Timeout:
            raise ValueError(f"another process is writing {self._directory}") from None
        self._open_files()
        return self.last_changes

    def search(
        self, texts: str | Sequence[str], top: int = TOP, rerank: int = RERANKED
    ) -> list[list[Hit]]:
        """Find the images that fit texts.

        Args:
          texts: one text or several.
          top: number of hits for each text.
          rerank: number of images that the matching head scores again. They stand
            before all others, by the logit of "match" plus the cosine. 0: none.

        Returns:
          The hits of each text, best first. Images that can no longer be read are left
          out of those that are scored again.
        """
        if top < 1 or rerank < 0:
            raise ValueError(f"top={top}, rerank={rerank}: expected at least 1 and 0")
        queries = inputs.as_texts(texts, "texts")
        similarity = self._similarity(queries)
        hits = []
        for text, scores in zip(queries, similarity.T, strict=True):
            order = _largest(scores, max(top, rerank))
            best = self._rerank(text, scores, order[:rerank]) if rerank else []
            rest = [Hit(self._names[i], float(scores[i])) for i in order[rerank:]]
            hits.append([*best, *rest][:top])
        return hits

    def _open_files(self) -> None:
        """Map the vectors and list the images that have some."""
        self._files = IndexFiles(self._directory)
        self._vectors = self._files.vectors()
        entries = self._files.entries.items()
        readable = [(name, entry.slot) for name, entry in entries if not entry.broken]
        self._names = [name for name, _ in readable]
        self._slots = np.array([slot for _, slot in readable], np.int64)

    def _update(self) -> Changes:
        files, stamps = self._files, self._gallery.stamps()
        removed = [name for name in files.entries if name not in stamps]
        files.remove(removed)
        files.compact()
        new = [name for name in stamps if name not in files.entries]
        changed = [
            name for name in files.entries if files.entries[name].stamp != stamps[name]
        ]
        todo, done = [*new, *changed], len(stamps) - len(new) - len(changed)
        images = self._gallery.load(todo)
        with WorkProgress("indexing", "images", len(stamps), done) as progress:
            for batch in in_batches(images, self._model.batch_size):
                rows = [(each.name, stamps[each.name], each.broken) for each in batch]
                files.append(rows, self._encode(batch))
                progress.advance(len(batch))
        return Changes(len(new), len(changed), len(removed))

    def _encode(self, batch: Sequence[Loaded]) -> Float[Array, "images Q C"]:
        """Compute the vectors of the readable images of a batch."""
        rows = [image.row for image in batch if image.row is not None]
        if not rows:
            return np.zeros((0, *self._vectors.shape[1:]), np.float32)
        images: Any = {self._gallery.keyword: np.stack(rows)}
        return self._model.features(mode="image", **images)["image_embeds_proj"]

    def _similarity(self, texts: Sequence[str]) -> Float[Array, "images texts"]:
        """Compute the cosine of every image with every text, block by block."""
        embeddings = self._model.features(texts=texts, mode="text")["text_embeds_proj"]
        vectors: Any = np.asarray(embeddings[:, 0])
        blocks = [np.zeros((0, len(vectors)), np.float32)]
        for start in range(0, len(self._slots), _BLOCK):
            images: Any = self._vectors[self._slots[start : start + _BLOCK]]
            blocks.append(np.asarray(max_query_similarity(images, vectors)))
        return np.concatenate(blocks)

    def _rerank(
        self, text: str, scores: Float[Array, " images"], order: Int[Array, " best"]
    ) -> list[Hit]:
        """Sort images by the logit of the matching head plus the cosine."""
        numbers = {self._names[i]: i for i in order}
        loaded = self._gallery.load(list(numbers))
        images = [each for each in loaded if each.row is not None]
        if not images:
            return []
        arrays: Any = [each.row for each in images]
        rows: Any = {self._gallery.keyword: np.stack(arrays)}
        matching = self._model.match_head(texts=text, **rows)
        hits = [
            (
                float(logit + scores[numbers[each.name]]),
                Hit(each.name, float(scores[numbers[each.name]]), float(probability)),
            )
            for each, logit, probability in zip(
                images, matching.logit, matching.probability, strict=True
            )
        ]
        return [hit for _, hit in sorted(hits, key=lambda pair: -pair[0])]


def fingerprint(model: Blip2Retriever) -> str:
    """Return a digest by which an index knows its model.

    It is over the sizes and the parameters between encoder and Q-Former and behind
    them, which no two trainings share. Precision and quantization do not count.
    """
    config, params = model.model.config, model.params
    digest = hashlib.sha256(f"{config.vision} {config.qformer}".encode())
    for name in _OWN_PARAMETERS:
        for leaf in jax.tree.leaves(hosts.to_host(params[name])):
            digest.update(np.asarray(leaf, np.float32).tobytes())
    return digest.hexdigest()


def _retriever(model: Blip2) -> Blip2Retriever:
    if not isinstance(model, Blip2Retriever):
        raise ValueError("search needs a stage-1 model; this one is of stage 2")
    return model


def _local(directory: str | pathlib.Path) -> pathlib.Path:
    if is_remote(directory):
        raise ValueError(f"{directory}: an index is a local directory")
    return pathlib.Path(directory)


def _largest(scores: Float[Array, " images"], count: int) -> Int[Array, " best"]:
    """Return the indices of the largest scores, largest first."""
    count = min(count, len(scores))
    if count < len(scores):
        best = np.argpartition(scores, len(scores) - count)[-count:]
    else:
        best = np.arange(count)
    return best[np.argsort(-scores[best], kind="stable")]
