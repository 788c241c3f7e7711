"""Search of images by text: equal to the evaluation, resumed, kept up to date."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import blip2_jax
from blip2_jax.cli.search import main
from blip2_jax.evaluation import shapes_exam
from blip2_jax.evaluation.stage1_scorer import Stage1Scorer
from blip2_jax.inference.image_index import Changes, ImageIndex
from blip2_jax.inference.index_files import IndexFiles
from blip2_jax.metrics.retrieval import Scores, recalls, top_columns

EXAM = shapes_exam.make_exam("heldout", 24, start=21_000)


@pytest.fixture(scope="module")
def model():
    return blip2_jax.load("shapes_stage1", batch_size=8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for number, pixels in enumerate(EXAM.images):
        name = f"more/{number:02d}.png" if number % 2 else f"{number:02d}.png"
        Image.fromarray(pixels).save(folder / name)
    return folder


def number_of(hit):
    return int(hit.name.removeprefix("more/").removesuffix(".png"))


def evaluate(model, k):
    """Return ITC and re-ranked scores [texts, images], as the evaluation does."""
    scorer = Stage1Scorer(model.model, model.params, batch_size=8)
    images = scorer.encode_images(EXAM.images[i : i + 8] for i in range(0, 24, 8))
    ids, mask = model.qformer_tokenizer.encode(EXAM.captions, 48)
    cosine = scorer.cosine(images, ids, mask)
    reranked = scorer.rerank(images, ids, mask, cosine, k).text_to_image
    return cosine.T, reranked


def test_hits_and_recall_equal_the_evaluation(model, photos, tmp_path):
    cosine, reranked = evaluate(model, 12)
    index = ImageIndex.build(model, photos, tmp_path / "index")
    assert index.last_changes == Changes(24, 0, 0)
    assert len(index) == 24
    for rerank, scores in ((0, cosine), (12, reranked)):
        hits = index.search(EXAM.captions, top=12, rerank=rerank)
        found = np.array([[number_of(hit) for hit in row] for row in hits])
        np.testing.assert_array_equal(found, top_columns(scores, 12))
        itc = np.array([[hit.itc for hit in row] for row in hits])
        expected = np.take_along_axis(cosine, found, axis=1)
        np.testing.assert_allclose(itc, expected, atol=1e-5)
        assert (hits[0][0].itm is None) == (rerank == 0)
        # The recall of the evaluation, from its own function and from the hits.
        recall = 100 * np.mean(found[:, 0] == np.arange(24))
        owners = np.arange(24)
        metrics = recalls(Scores(scores.T, scores), owners)
        assert recall == pytest.approx(metrics["t2i_r1"])
    [[hit, *_]] = index.search(EXAM.captions[0], rerank=4)
    match = model.match(EXAM.images[number_of(hit)], EXAM.captions[0])
    assert hit.itm == pytest.approx(float(match.itm[0]), abs=1e-5)


def test_a_killed_build_continues(model, photos, tmp_path, monkeypatch):
    directory = tmp_path / "index"
    calls = []
    encode = ImageIndex._encode

    def stop_at_third(self, batch):
        calls.append([image.name for image in batch])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, batch)

    monkeypatch.setattr(ImageIndex, "_encode", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        ImageIndex.build(model, photos, directory)
    # What a kill in the middle of a write leaves.
    with (directory / "vectors-0.bin").open("ab") as file:
        file.write(b"half of a vector")
    with (directory / "entries-0.jsonl").open("ab") as file:
        file.write(b'["half of a li')
    assert len(ImageIndex.open(model, directory)) == 16
    index = ImageIndex.build(model, photos, directory)
    assert index.last_changes.added == 8
    assert [len(names) for names in calls] == [8, 8, 8, 8]
    assert calls[2] == calls[3]
    monkeypatch.undo()
    whole = ImageIndex.build(model, photos, tmp_path / "whole")
    assert index.search("a red circle", rerank=0) == whole.search(
        "a red circle", rerank=0
    )


def test_changes_of_the_folder_and_broken_images(model, photos, tmp_path):
    folder, directory = tmp_path / "photos", tmp_path / "index"
    shutil.copytree(photos, folder)
    (folder / "broken.jpg").write_bytes(b"no image")
    index = ImageIndex.build(model, folder, directory)
    assert index.broken == {"broken.jpg": "not an image"}
    assert len(index) == 24
    # Nothing changed: nothing is encoded, not even the broken image.
    assert ImageIndex.build(model, folder, directory).last_changes == (0, 0, 0)
    [before] = index.search(EXAM.captions[0], top=3, rerank=0)
    best = folder / before[0].name
    best.unlink()
    Image.fromarray(EXAM.images[0]).save(folder / "new.png")
    shutil.copy(folder / "new.png", folder / "broken.jpg")
    assert index.update() == Changes(added=1, changed=1, removed=1)
    assert index.broken == {}
    [after] = index.search(EXAM.captions[0], top=3, rerank=0)
    assert {hit.name for hit in after[:2]} == {"new.png", "broken.jpg"}
    assert after[2] == before[1]
    # An image that goes after the update is left out of the re-ranked ones.
    (folder / "new.png").unlink()
    [hits] = index.search(EXAM.captions[0], rerank=5)
    assert "new.png" not in {hit.name for hit in hits}


def test_unused_slots_are_given_back(model, photos, tmp_path):
    folder, directory = tmp_path / "photos", tmp_path / "index"
    shutil.copytree(photos, folder)
    index = ImageIndex.build(model, folder, directory)
    for number in range(2, 24):
        next(folder.rglob(f"{number:02d}.png")).unlink()
    index.update()
    assert len(index) == 2
    names = {path.name for path in directory.iterdir()}
    assert names >= {"index.json", "vectors-1.bin", "entries-1.jsonl"}
    assert "vectors-0.bin" not in names
    assert len(IndexFiles(directory).vectors()) == 2
    [hits] = ImageIndex.open(model, directory).search("a red star", rerank=0)
    assert sorted(map(number_of, hits)) == [0, 1]


def test_models_that_do_not_fit_are_refused(model, photos, tmp_path):
    directory = tmp_path / "index"
    with pytest.raises(ValueError, match="stage-1 model"):
        ImageIndex.build(blip2_jax.load("shapes"), photos, directory)
    with pytest.raises(FileNotFoundError, match="no index in"):
        ImageIndex.open(model, directory)
    ImageIndex.build(model, photos, directory)
    other = blip2_jax.load("shapes_stage1")
    other.params = {**other.params, "query_tokens": other.params["query_tokens"] + 1}
    with pytest.raises(ValueError, match="index of another model"):
        ImageIndex.open(other, directory)
    with pytest.raises(ValueError, match="is an index of"):
        ImageIndex.build(model, photos / "more", directory)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no image in"):
        ImageIndex.build(model, tmp_path / "empty", tmp_path / "other")


def test_the_command_builds_and_searches(photos, tmp_path, capsys):
    options = ["--model", "shapes_stage1", "--index", str(tmp_path / "index")]
    options += ["--compile_cache", "off"]
    assert main([*options]) == 2
    assert "nothing to do" in capsys.readouterr().err
    text = EXAM.captions[3]
    assert main([*options, "--images", str(photos), "--top", "2", text]) == 0
    built = capsys.readouterr().out
    assert built.startswith("24 images in the index: 24 added, 0 changed, 0 removed")
    assert "match probability" in built
    assert main([*options, "--rerank", "0", "--top", "2", text]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{text}:"
    assert len(lines) == 3
    assert json.loads((tmp_path / "index" / "index.json").read_text())["version"] == 1
