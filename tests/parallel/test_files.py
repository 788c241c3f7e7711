"""Files that are empty, cut off or of another format are named in the error."""

import os

import numpy as np
import pytest

from blip2_jax.parallel.files import (
    FileFormatError,
    read_array,
    read_json,
    read_json_lines,
    read_text,
    split_lines,
    write_atomically,
)

BROKEN_JSON = {
    "empty": b"",
    "cut": b'{"a": [1, 2',
    "nul": b"\0\0\0",
    "latin-1": b'{"a": "\xe9"}',
    "deep": b"[" * 200_000,
}


@pytest.mark.parametrize("content", BROKEN_JSON.values(), ids=BROKEN_JSON)
def test_json_that_cannot_be_parsed_is_named(tmp_path, content):
    path = tmp_path / "keys.json"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"keys\.json is "):
        read_json(path)


def test_a_line_that_cannot_be_parsed_is_named_with_its_number(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "a\u2028b"}\n\n{"b"\n')
    with pytest.raises(FileFormatError, match=r"lines\.jsonl, line 3 is not valid"):
        read_json_lines(path)
    path.write_text('{"text": "a\u2028b"}\n\n')
    assert read_json_lines(path) == [{"text": "a\u2028b"}]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_lines_end_only_where_the_format_says(tmp_path, separator):
    path = tmp_path / "lines.jsonl"
    line = f'{{"text": "a{separator}b"}}'
    for end in ("\n", "\r\n", "\r"):
        content = line + end + " \t" + end + end + line
        for mark in ("", "\ufeff"):
            path.write_bytes((mark + content).encode())
            assert read_json_lines(path) == [{"text": f"a{separator}b"}] * 2
    path.write_bytes(f"\ufeffa{separator}b\r\n\nc".encode())
    assert split_lines(read_text(path)) == [f"a{separator}b\r", "", "c"]


OTHER_ENCODINGS = {
    "utf-16": ('"\xe9"'.encode("utf-16"), "in UTF-16"),
    "utf-32": ('"\xe9"'.encode("utf-32"), "in UTF-32"),
    "utf-16 without mark": ('"e"'.encode("utf-16-be"), "line 1, byte 1 is 0x00"),
    "latin-1": ('[\n\n"caf\xe9"]'.encode("latin-1"), "line 3, byte 8 is 0xe9"),
}


@pytest.mark.parametrize(
    "content, reason", OTHER_ENCODINGS.values(), ids=OTHER_ENCODINGS
)
def test_other_encodings_are_refused_with_their_place(tmp_path, content, reason):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    for read in (read_json, read_json_lines, read_text):
        with pytest.raises(FileFormatError, match=rf"a\.json is .*{reason}"):
            read(path)


def test_a_named_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(FileNotFoundError, match="not a regular file"):
        read_json(tmp_path / "pipe.json")


def test_an_array_that_is_not_whole_is_named(tmp_path):
    path = tmp_path / "features.npy"
    np.save(path, np.arange(1000.0))
    content = path.read_bytes()
    archive = tmp_path / "several.npz"
    np.savez(archive, a=np.zeros(2), b=np.zeros(3))
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([{}], object), allow_pickle=True)
    for mode in (None, "r"):
        assert read_array(path, mode)[999] == 999
        for file in (archive, objects):
            with pytest.raises(FileFormatError, match=file.name):
                read_array(file, mode)
    for broken in (b"", content[:40], content[:-8], b"not an array"):
        path.write_bytes(broken)
        for mode in (None, "r"):
            with pytest.raises(FileFormatError, match=r"features\.npy is not a"):
                read_array(path, mode)


def test_a_file_that_is_not_there_is_no_error_of_format(tmp_path):
    for read in (read_json, read_json_lines, read_array):
        with pytest.raises(FileNotFoundError, match="absent"):
            read(tmp_path / "absent")


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "a.json"
    for text in ("[1]", "[2]"):
        write_atomically(path, text)
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]
