"""A page about the result of CapFilt: counts, scores, and images with all captions."""

from __future__ import annotations

import json
import pathlib
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from blip2_jax.capfilt.candidates import ORIGINS, WEB
from blip2_jax.capfilt.counts import BINS_PER_UNIT, CapFiltCounts
from blip2_jax.data.images import decode_image
from blip2_jax.data.sources.content_digest import evenly_spaced
from blip2_jax.reports.chart import histogram
from blip2_jax.reports.images import jpeg_tag
from blip2_jax.reports.markup import Html, element
from blip2_jax.reports.template import (
    render_list,
    render_note,
    render_page,
    render_table,
)

_ROWS = {
    "all": "captions",
    "merged": "further captions equal to these",
    "empty": "empty ones, left out",
    "kept": "kept",
    "best": "best of their image",
}

# The content of an image file, and of the JSON beside it.
Example = tuple[bytes, dict[str, Any]]


def capfilt_page(
    settings: Mapping[str, Any], counts: CapFiltCounts, examples: Sequence[Example]
) -> str:
    """Render the page as one HTML file with the images inside.

    Args:
      settings: of the job (`CapFiltJob.settings`).
      counts: of all images.
      examples: images to show with all their captions.
    """
    captioner, ranker = (settings[name]["path"] for name in ("captioner", "ranker"))
    lead = (
        f"{counts.images} images. Captions sampled by {captioner}, ranked together "
        f"with those of the web by {ranker}; the best {settings['keep']} of an image "
        "are kept."
    )
    return render_page(
        "CapFilt",
        [
            render_note(lead),
            element("h2", "Captions by origin"),
            _captions_table(counts),
            render_note(web_share(counts)),
            element("h2", "Scores by origin"),
            _histograms(counts),
            element("h2", "Images with all captions"),
            render_note(
                "Scores and captions, best first; those that are kept are green. "
                f"Captions of the web are marked ({WEB})."
            ),
            element("div", *map(_card, examples), class_="cards"),
            *_left_out(counts),
        ],
    )


def web_share(counts: CapFiltCounts) -> str:
    """Say how many of the web captions are kept."""
    web = counts.captions[WEB]
    if not web["all"]:
        return "there are no web captions"
    share = 100 * web["kept"] / web["all"]
    return f"{web['kept']} of {web['all']} web captions are kept ({share:.1f} %)"


def read_examples(tars: Sequence[pathlib.Path], count: int) -> list[Example]:
    """Read images and their captions at even distances from the tars of CapFilt.

    Args:
      tars: the tars.
      count: number of images; fewer if the tars hold fewer.
    """
    chosen = evenly_spaced(len(tars), count)
    if not chosen or not count:
        return []
    examples = [
        example
        for index in chosen
        for example in _read_tar(tars[index], -(-count // len(chosen)))
    ]
    return examples[:count]


def _read_tar(path: pathlib.Path, count: int) -> Iterator[Example]:
    """Read some records of a tar, at even distances."""
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        members = tar.getmembers()
        records = list(zip(members[::2], members[1::2], strict=True))
        for index in evenly_spaced(len(records), count):
            image, text = (_content(tar, member) for member in records[index])
            yield image, json.loads(text)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # tars of CapFilt hold regular files only
    return file.read()


def _captions_table(counts: CapFiltCounts) -> Html:
    rows = [
        [label, *(str(counts.captions[origin][name]) for origin in ORIGINS)]
        for name, label in _ROWS.items()
    ]
    return render_table(["", *ORIGINS], rows)


def _histograms(counts: CapFiltCounts) -> Html:
    """Render one chart of the scores of all captions."""
    series = {
        origin: {int(bin_): n for bin_, n in counts.histograms[origin].items()}
        for origin in ORIGINS
    }
    chart = histogram("score", series, 1 / BINS_PER_UNIT)
    return element("div", element("figure", chart), class_="curves")


def _left_out(counts: CapFiltCounts) -> list[Html]:
    """Render what is missing in the tars; nothing if nothing is."""
    rows = [[cause, str(n)] for cause, n in counts.broken.most_common()]
    if counts.without_captions:
        rows.append(["no caption", str(counts.without_captions)])
    if not rows:
        return []
    parts = [element("h2", "Images that are left out")]
    parts.append(render_table(["cause", "images"], rows))
    if counts.broken_places:
        parts.append(render_list(counts.broken_places))
    if more := counts.broken.total() - len(counts.broken_places):
        parts.append(render_note(f"... and {more} more, in the reports of the shards."))
    return parts


def _card(example: Example) -> Html:
    """Render an image with all its captions, best first."""
    data, content = example
    name = content["key"]
    ranked = sorted(content["candidates"], key=lambda each: -each["score"])
    captions = [
        element(
            "li",
            element("span", f"{each['score']:.3f}", class_="name"),
            f" {each['text']} ",
            element("span", _marks(each), class_="name"),
            **({"class_": "right"} if each["kept"] else {}),
        )
        for each in ranked
    ]
    return element(
        "div",
        element(
            "figure",
            jpeg_tag(decode_image(data, name), name, 160),
            element("figcaption", name),
        ),
        element("div", element("ul", *captions)),
        class_="card",
    )


def _marks(candidate: Mapping[str, Any]) -> str:
    """Say if a caption is of the web, and how often it occurs."""
    times = [f"{candidate['times']} times"] if candidate["times"] > 1 else []
    marks = [*([WEB] if candidate["origin"] == WEB else []), *times]
    return f"({', '.join(marks)})" if marks else ""
