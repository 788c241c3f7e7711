"""The actions of the web page, without a browser."""

import threading

import pytest
from PIL import EpsImagePlugin, Image

import blip2_jax
from blip2_jax.data.shapes.captions import parse_caption
from blip2_jax.inference.image_index import ImageIndex
from blip2_jax.serve.page_actions import PageActions, UserError
from blip2_jax.serve.requests import CallRequest
from blip2_jax.serve.uploads import UploadLimits, read_upload

GREEDY = {"num_beams": 1, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        blip2_jax.example_image(number, size=96).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def actions(folder, tmp_path_factory):
    retriever = blip2_jax.load("shapes_stage1")
    index = ImageIndex.build(retriever, folder, tmp_path_factory.mktemp("index"))
    made = PageActions(blip2_jax.load("shapes"), retriever, index, max_queue=4)
    yield made
    made.close()


def test_captions_and_answers(actions, folder):
    path = str(folder / "0.png")
    [text] = actions.caption(path, "", GREEDY)
    assert parse_caption(text).things
    assert [text] == actions.caption(path, "  ", GREEDY | {"num_beams": 0.2})
    question = "how many things are there?"
    model = actions.writer
    expected = model.answer(blip2_jax.example_image(0, 96), question, num_beams=1)
    assert actions.answer(path, question, (), GREEDY) == expected[0]
    again = actions.answer(path, question, [(question, expected[0])], GREEDY)
    assert isinstance(again, str)


def test_texts_are_scored_by_either_stage(actions, folder):
    path = str(folder / "0.png")
    table = actions.score(path, "a <b>red</b> star\n\na small blue ring")
    assert "&lt;b&gt;red&lt;/b&gt;" in table
    assert "match probability" in table
    alone = PageActions(actions.writer)
    assert "log-probability" in alone.score(path, "a red star\na blue ring")
    alone.close()


def test_search_returns_small_pictures(actions, folder):
    found = actions.search("a red star", 2)
    assert [hit.pixels.shape for hit in found] == [(96, 96, 3)] * 2
    assert "match" in found[0].caption


def test_words_have_maps(actions, folder):
    pixels, result = actions.word_attention(str(folder / "1.png"), "a red star", "")
    assert pixels.shape == (96, 96, 3)
    assert result.words == ["a", "red", "star"]
    shown = actions.overlay(pixels, result.maps[2])
    assert shown.shape[0] == shown.shape[1] >= 96


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, p: a.caption(None, "", {}), "Choose a picture first"),
        (lambda a, p: a.caption(str(p / "text.txt"), "", {}), "not a picture"),
        (lambda a, p: a.caption(str(p / "gone.png"), "", {}), "no longer here"),
        (lambda a, p: a.answer(str(p / "0.png"), " ", (), {}), "question is empty"),
        (lambda a, p: a.score(str(p / "0.png"), "\n"), "at least one text"),
        (lambda a, p: a.score(str(p / "0.png"), "a\n" * 60), "60 texts"),
        (lambda a, p: a.search("a" * 3000, 1), "more than 2000 characters"),
        (
            lambda a, p: a.caption(
                str(p / "0.png"), "", {"min_new_tokens": 9, "max_new_tokens": 5}
            ),
            "min_new_tokens",
        ),
    ],
)
def test_mistakes_are_told_to_the_user(actions, folder, call, message):
    (folder / "text.txt").write_text("no picture")
    with pytest.raises(UserError, match=message):
        call(actions, folder)


def test_a_cleared_seed_is_0(actions, folder):
    call = lambda seed: actions.caption(
        str(folder / "0.png"), "", {"sample": True, "seed": seed}
    )
    assert call(None) == call(0)


def test_a_full_queue_is_told_to_the_user(actions, folder):
    started, release = threading.Event(), threading.Event()

    def block(_):
        started.set()
        release.wait(30)

    engine = actions._engines[id(actions.writer)]
    futures = [engine.submit(CallRequest(block))]
    assert started.wait(30)
    futures += [engine.submit(CallRequest(lambda _: None)) for _ in range(4)]
    with pytest.raises(UserError, match="4 requests are waiting"):
        actions.caption(str(folder / "0.png"), "", GREEDY)
    release.set()
    for future in futures:
        future.result(30)
    assert actions.caption(str(folder / "0.png"), "", GREEDY)


def test_no_upload_is_given_to_another_program(tmp_path, monkeypatch):
    """Pillow reads PostScript by Ghostscript, whatever the name of the file."""
    path = tmp_path / "a.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with Image.open(path) as image:
        assert image.format == "EPS"
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail())
    with pytest.raises(ValueError, match="not a picture"):
        read_upload(str(path), UploadLimits())


def test_large_uploads_are_refused_before_they_are_decoded(tmp_path):
    path = str(tmp_path / "a.png")
    Image.new("L", (300, 200)).save(path)
    assert read_upload(path, UploadLimits()).shape == (200, 300, 3)
    with pytest.raises(ValueError, match=r"0\.06 million pixels|million pixels"):
        read_upload(path, UploadLimits(pixels=59_999))
    with pytest.raises(ValueError, match="larger than"):
        read_upload(path, UploadLimits(bytes=10))
