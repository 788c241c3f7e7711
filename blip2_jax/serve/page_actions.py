"""What the web page does: each action takes what a user gave and asks the engine.

No action knows of the page's components, so that all can be tested without a browser.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float, UInt8
from numpy import ndarray as Array

from blip2_jax.inference.generator import Blip2Generator
from blip2_jax.inference.image_index import ImageIndex
from blip2_jax.inference.model import Blip2
from blip2_jax.inference.retriever import Blip2Retriever
from blip2_jax.inference.user_images import as_pixels
from blip2_jax.inference.word_attention import WordAttention
from blip2_jax.reports.heat import overlay, scale
from blip2_jax.reports.markup import element
from blip2_jax.serve.batching import DeadlineExceeded, Engine, EngineClosed, QueueFull
from blip2_jax.serve.requests import (
    AnswerRequest,
    CallRequest,
    CaptionRequest,
    MatchRequest,
    RankRequest,
    image_pixels,
)
from blip2_jax.serve.thumbnail import thumbnail
from blip2_jax.serve.uploads import UploadLimits, read_upload

MAX_TEXTS = 50  # that are ranked at once
MAX_CHARACTERS = 2000  # of a text that a user writes
TIMEOUT = 120.0  # seconds that a request waits
# Decoding settings that a user may choose: smallest and largest value.
BOUNDS = {
    "num_beams": (1, 8),
    "max_new_tokens": (1, 64),
    "min_new_tokens": (0, 32),
    "length_penalty": (-2.0, 3.0),
    "repetition_penalty": (1.0, 2.0),
    "temperature": (0.1, 2.0),
    "top_p": (0.1, 1.0),
}

Pixels = UInt8[Array, "height width 3"]
Turns = Sequence[tuple[str, str]]


class UserError(ValueError):
    """What went wrong, in a sentence for the user of the page."""


class Found(NamedTuple):
    """A picture that a search found.

    Attributes:
      pixels: the picture, small. Its file is not handed out: others lie beside it.
      caption: its name and scores.
    """

    pixels: Pixels
    caption: str


class PageActions:
    """The actions of the page for one model, and for a second one that matches.

    Attributes:
      writer: the model that describes and answers.
      matcher: the stage-1 model that matches and searches; None: there is none.
      index: of the pictures that are searched; None: there is none.
    """

    def __init__(
        self,
        model: Blip2,
        retriever: Blip2Retriever | None = None,
        index: ImageIndex | None = None,
        *,
        limits: UploadLimits | None = None,
        max_batch: int = 8,
        max_queue: int = 32,
    ):
        """Start an engine for each model.

        Args:
          model: of either stage.
          retriever: a stage-1 model beside one of stage 2; None: without.
          index: of pictures, for the stage-1 model.
          limits: of uploads.
          max_batch: see `Engine`.
          max_queue: see `Engine`.
        """
        if retriever is None and isinstance(model, Blip2Retriever):
            retriever = model
        self.writer, self.matcher, self.index = model, retriever, index
        self.limits = limits or UploadLimits()
        self.max_queue = max_queue
        self._engines: dict[int, Engine] = {}
        for each in (model, retriever):
            if each is not None and id(each) not in self._engines:
                self._engines[id(each)] = Engine(
                    each, max_batch=max_batch, max_queue=max_queue
                )

    @property
    def can_answer(self) -> bool:
        """Return True if the model answers questions."""
        return isinstance(self.writer, Blip2Generator)

    def close(self) -> None:
        """Stop the engines; what waits is cancelled."""
        for engine in self._engines.values():
            engine.close(finish=False)

    def read(self, path: str | None) -> Pixels:
        """Read the picture that the user chose.

        Raises:
          UserError: there is none, or it is refused.
        """
        if not path:
            raise UserError("Choose a picture first.")
        try:
            return read_upload(path, self.limits)
        except ValueError as error:
            raise UserError(str(error)) from None
        except FileNotFoundError:  # uploads are deleted after an hour
            raise UserError("The picture is no longer here: upload it again.") from None

    def caption(
        self, path: str | None, prompt: str, settings: Mapping[str, Any]
    ) -> list[str]:
        """Describe a picture; returns texts, best first."""
        image = image_pixels(self.writer, self.read(path))
        seed, chosen = _decoding(settings)
        start = _text(prompt, "The start", optional=True) or None
        request = CaptionRequest((image,), settings=chosen, seed=seed, prompt=start)
        texts: list[str] = self._ask(self.writer, request)
        return texts

    def answer(
        self, path: str | None, question: str, turns: Turns, settings: Mapping[str, Any]
    ) -> str:
        """Answer a question that follows earlier turns."""
        image = image_pixels(self.writer, self.read(path))
        seed, chosen = _decoding(settings)
        chosen.pop("length_penalty", None)  # that of answers prefers short ones
        request = AnswerRequest(
            (image,),
            _text(question, "The question"),
            tuple(turns),
            settings=chosen,
            seed=seed,
        )
        answers: list[str] = self._ask(self.writer, request)
        return answers[0]

    def score(self, path: str | None, texts: str) -> str:
        """Score texts, one a line, against a picture; returns an HTML table.

        A stage-1 model gives cosine and matching probability, another one the
        log-probability of each text.
        """
        lines = _lines(texts)
        pixels = self.read(path)
        if self.matcher is not None:
            image = image_pixels(self.matcher, pixels)
            match = self._ask(self.matcher, MatchRequest(image, tuple(lines)))
            pairs = zip(lines, match.itc, match.itm, strict=True)
            rows = sorted(pairs, key=lambda row: -row[2])
            return _table(
                ("text", "match probability", "cosine"),
                [(text, f"{itm:.3f}", f"{itc:.3f}") for text, itc, itm in rows],
            )
        image = image_pixels(self.writer, pixels)
        ranked = self._ask(
            self.writer, RankRequest((image,), tuple(lines), length_penalty=1.0)
        )
        return _table(
            ("text", "mean log-probability of a token"),
            [(each.text, f"{each.score:.2f}") for each in ranked],
        )

    def search(self, text: str, count: int) -> list[Found]:
        """Find pictures of the index."""
        index = self.index
        assert self.matcher is not None
        assert index is not None
        query = _text(text, "The search")
        [hits] = self._ask(
            self.matcher, CallRequest(lambda _: index.search(query, top=count))
        )
        found = []
        for hit in hits:
            match = "" if hit.itm is None else f"match {hit.itm:.0%}\n"
            with contextlib.suppress(ValueError, OSError):  # gone since
                pixels = thumbnail(as_pixels(index.path(hit.name)))
                scores = f"{match}cosine {hit.itc:.2f}"
                found.append(Found(pixels, f"{hit.name}\n{scores}"))
        return found

    def word_attention(
        self, path: str | None, text: str, prompt: str
    ) -> tuple[Pixels, WordAttention]:
        """Compute where the queries looked for each word of a text.

        Args:
          path: of the picture.
          text: the text; "": the caption of the model.
          prompt: start of the text.

        Returns:
          The picture, small, and words with maps.
        """
        pixels = self.read(path)
        image = image_pixels(self.writer, pixels)
        given = _text(text, "The text", optional=True) or None
        start = _text(prompt, "The start", optional=True) or None
        request = CallRequest(lambda model: model.word_attention(image, given, start))
        result: WordAttention = self._ask(self.writer, request)
        return thumbnail(pixels), result

    def overlay(self, pixels: Pixels, values: Float[Array, "grid grid"]) -> Pixels:
        """Lay the map of a word over its picture."""
        return overlay(thumbnail(pixels), scale(values[None])[0])

    def _ask(self, model: Blip2, request: Any) -> Any:
        """Run a request in turn.

        Raises:
          UserError: too many requests wait, or the model cannot do what is asked.
        """
        try:
            return self._engines[id(model)].submit(request, timeout=TIMEOUT).result()
        except QueueFull:
            raise UserError(
                f"{self.max_queue} requests are waiting already. Try again in a moment."
            ) from None
        except DeadlineExceeded:
            raise UserError("The model is busy; the request waited too long.") from None
        except (EngineClosed, concurrent.futures.CancelledError):
            raise UserError("The page is being closed.") from None
        except ValueError as error:
            raise UserError(str(error)) from None


def _decoding(settings: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return the seed, and decoding settings within their bounds."""
    chosen: dict[str, Any] = {"sample": bool(settings.get("sample", False))}
    for name, (low, high) in BOUNDS.items():
        if name in settings:
            value = type(low)(settings[name])
            chosen[name] = min(max(value, low), high)
    if chosen["sample"]:
        chosen["num_beams"] = 1
    else:
        chosen = {k: v for k, v in chosen.items() if k not in ("temperature", "top_p")}
    return int(settings.get("seed") or 0) % 2**31, chosen


def _text(text: str | None, name: str, optional: bool = False) -> str:
    """Return a text without outer spaces.

    Raises:
      UserError: it is empty or too long.
    """
    text = (text or "").strip()
    if not text and not optional:
        raise UserError(f"{name} is empty.")
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{name} has more than {MAX_CHARACTERS} characters.")
    return text


def _lines(texts: str) -> list[str]:
    """Return the lines of a text that are not blank.

    Raises:
      UserError: there are none, or too many.
    """
    lines = [line.strip() for line in texts.splitlines() if line.strip()]
    if not lines:
        raise UserError("Write at least one text, each on its own line.")
    if len(lines) > MAX_TEXTS:
        raise UserError(f"{len(lines)} texts were given; at most {MAX_TEXTS} are read.")
    return [_text(line, "A text") for line in lines]


def _table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Return an HTML table."""
    names = element("tr", *(element("th", name, scope="col") for name in head))
    cells = [element("tr", *(element("td", cell) for cell in row)) for row in rows]
    return element(
        "table", element("thead", names), element("tbody", *cells), class_="scores"
    )
