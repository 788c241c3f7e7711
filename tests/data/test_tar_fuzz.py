"""Damaged tars: a message that names the file, never a crash, a hang or much memory."""

import resource
import signal
import sys
import tarfile

import pytest

from blip2_jax.data.sources.base import BrokenSample
from blip2_jax.data.sources.reading import read_pixels, read_record
from blip2_jax.data.sources.registry import build_source
from blip2_jax.data.sources.tar_index import scan_tar
from tests.support.mutated_tars import mutations, whole_tars

LIMIT_S = 5  # for one tar; it takes a millisecond
LIMIT_MB = 64
TARS_OF_A_SOURCE = 100  # an index is written to the disk for each source


def hung(*_):
    raise AssertionError("a damaged tar is read for more than 5 s")


def peak_mb():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def check(folder, cases):
    """Index each tar; read every record and image of those that are accepted."""
    accepted = 0
    before = signal.signal(signal.SIGALRM, hung)
    start_mb = peak_mb()
    try:
        for number, (name, content) in enumerate(cases):
            path = folder / f"{number:05d}.tar"
            path.write_bytes(content)
            signal.alarm(LIMIT_S)
            try:
                scan_tar(path)
            except ValueError as error:
                assert str(path) in str(error), name
                path.unlink()
        signal.alarm(0)
        paths = sorted(folder.glob("*.tar"))
        for first in range(0, len(paths), TARS_OF_A_SOURCE):
            part = [str(path) for path in paths[first : first + TARS_OF_A_SOURCE]]
            accepted += read_all(part, folder / "index")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert peak_mb() - start_mb < LIMIT_MB
    return accepted, len(paths)


def read_all(paths, index):
    spec = {"kind": "tars", "paths": paths, "index_directory": str(index)}
    source = build_source(spec)
    signal.alarm(10 * LIMIT_S)
    readable = 0
    for position in range(len(source)):
        try:
            record = read_record(source, position)
            read_pixels(source, position, record.key)
            readable += 1
        except BrokenSample as error:
            assert error.cause and error.key
    signal.alarm(0)
    assert len(set(source.keys())) == len(source)
    return readable


@pytest.mark.parametrize(
    "count, seed", [(300, 0), pytest.param(2500, 1, marks=pytest.mark.slow)]
)
def test_mutated_tars(tmp_path, count, seed):
    readable, accepted = check(tmp_path, mutations(count, seed))
    # Both outcomes occur: most mutations leave readable records or are noticed.
    assert count / 10 < accepted < count
    assert readable > count / 10


def members(path):
    """Members as `tarfile` reads them, with the bytes of their names."""
    with tarfile.open(path, "r:", encoding="utf-8") as tar:
        return [
            (
                member.name.encode("utf-8", "surrogateescape"),
                member.isdir(),
                member.offset_data,
                member.size,
            )
            for member in tar
            if not member.issparse()
        ]


def our_members(path):
    from blip2_jax.data.sources.read_ahead import ReadAhead
    from blip2_jax.data.sources.tar_members import DIRECTORY, read_members

    data = path.read_bytes()
    file = ReadAhead(lambda offset, size: data[offset : offset + size], 1024, 4096)
    return [
        (name.rstrip(b"/") if kind == DIRECTORY else name, kind == DIRECTORY, *place)
        for name, kind, *place, sparse in read_members(file, len(data))
        if not sparse
    ]


@pytest.mark.parametrize("form", ["ustar", "gnu", "pax", "sparse"])
def test_members_are_those_of_tarfile(tmp_path, form):
    path = tmp_path / "x.tar"
    path.write_bytes(whole_tars()[form])
    assert our_members(path) == members(path)


def test_members_of_cut_and_flipped_tars_are_those_of_tarfile(tmp_path):
    """Where both read a tar to its end; header checksums notice most flips."""
    path, compared = tmp_path / "x.tar", 0
    for name, content in mutations(500, seed=2):
        if not name.endswith(("flip bits", "truncate", "duplicate blocks")):
            continue
        path.write_bytes(content)
        try:
            ours, theirs = our_members(path), members(path)
        except (ValueError, tarfile.TarError, IndexError):
            continue
        # `tarfile` takes a damaged header for the end; `scan_tar` notices it.
        assert ours[: len(theirs)] == theirs, name
        compared += 1
    assert compared > 10
