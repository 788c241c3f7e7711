"""Sets of many images: their names, order and files."""

import os

import pytest

from blip2_jax.inference import image_sets


def make_files(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))


def names_of(patterns, directory):
    image_sets.write_list([str(pattern) for pattern in patterns], directory)
    images = image_sets.open_images([str(pattern) for pattern in patterns], directory)
    names = images.names(0, len(images))
    for index, name in enumerate(names):
        assert images.read(index, name) == os.fsencode(name)
    return names


def test_a_folder_is_listed_with_its_sub_folders_in_order(tmp_path):
    odd = os.fsdecode(b"caf\xe9.jpg")
    names = ["b.jpg", "c.JPEG", odd, "a/z.png", "a/b/x.webp", "d e/line\nend.jpg"]
    make_files(tmp_path / "in", *reversed(names), "notes.txt", "a/b.json")
    assert names_of([tmp_path / "in"], tmp_path / "out") == names


def test_parts_of_a_long_list_are_read_across_blocks(tmp_path):
    names = [f"{index:04d}.jpg" for index in range(3 * image_sets.BLOCK + 5)]
    make_files(tmp_path / "in", *names)
    image_sets.write_list([str(tmp_path / "in")], tmp_path / "out")
    images = image_sets.ListedImages(tmp_path / "out")
    for start, stop in ((0, 1), (60, 70), (64, 128), (190, len(names)), (5, 5)):
        assert images.names(start, stop) == names[start:stop]


def test_names_of_patterns_are_relative_to_their_common_folder(tmp_path, monkeypatch):
    make_files(tmp_path / "x", "1.jpg", "2.png", "y/3.jpg", "y/4.txt")
    monkeypatch.chdir(tmp_path)
    assert names_of(["x/*.*"], tmp_path / "a") == ["1.jpg", "2.png"]
    assert names_of(["x/**/*"], tmp_path / "b") == ["1.jpg", "2.png", "y/3.jpg"]
    assert names_of(["x/y/*", "x/1.jpg"], tmp_path / "c") == ["y/3.jpg", "1.jpg"]


def test_what_is_not_there_is_named(tmp_path):
    make_files(tmp_path / "x", "1.txt")
    for patterns, message in (
        ([tmp_path / "x"], "no image in .*tars are named"),
        ([tmp_path / "x/*.jpg"], r"no image matches .*\*\.jpg"),
        ([tmp_path / "none.jpg"], "no file or folder .*none"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            image_sets.write_list([str(p) for p in patterns], tmp_path / "out")
    with pytest.raises(ValueError, match="is a folder"):
        image_sets.write_list([str(tmp_path), str(tmp_path / "x")], tmp_path / "out")
    with pytest.raises(ValueError, match="in one place"):
        image_sets.write_list(["a.jpg", "s3://b/c.jpg"], tmp_path / "out")
    assert not image_sets.has_list(tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_an_error(tmp_path):
    make_files(tmp_path / "in", "a.jpg", "closed/b.jpg")
    (tmp_path / "in/closed").chmod(0)
    try:
        with pytest.raises(PermissionError):
            image_sets.write_list([str(tmp_path / "in")], tmp_path / "out")
    finally:
        (tmp_path / "in/closed").chmod(0o700)
