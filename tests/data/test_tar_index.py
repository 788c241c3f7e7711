"""The index of a set of tars: built once, resumed, verified, opened and not loaded."""

import hashlib
import json
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest

from benchmarks import harness
from benchmarks.large_index import write_large_set
from blip2_jax.data.sources import tar_scan_process, tar_scanning
from blip2_jax.data.sources.bit_selection import BitSelection
from blip2_jax.data.sources.read_ahead import ReadAhead
from blip2_jax.data.sources.registry import build_source
from blip2_jax.data.sources.tar_index import scan_tar
from blip2_jax.data.sources.tar_set_index import npy_head
from tests.support.generated_data import write_tar
from tests.support.mutated_tars import whole_tars


def spec(folder, pattern="*.tar"):
    return {
        "kind": "tars",
        "paths": str(folder / pattern),
        "index_directory": str(folder / "index"),
    }


def write_tars(folder, count, records=3):
    for number in range(count):
        members = {}
        for record in range(records):
            members[f"{number:03d}{record}.jpg"] = b"image %d" % number
            members[f"{number:03d}{record}.txt"] = b"text %d" % record
        write_tar(folder / f"{number:05d}.tar", members)


@pytest.fixture
def scanned(monkeypatch):
    """Names of the tars that this process scans."""
    names = []

    def scan(path):
        names.append(path.name)
        return scan_tar(path)

    monkeypatch.setattr(tar_scan_process, "scan_tar", scan)
    return names


def stored(folder):
    """Files of the index of the only set."""
    return {path.name: path for path in folder.glob("index/*/index-*/*")}


def former_digest(paths):
    """Digest of keys and spans as of releases that held them in memory."""
    columns = {"jpg": 0, "txt": 1, "json": 2}
    rows = {}
    for path in paths:
        with tarfile.open(path, encoding="utf-8") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if not member.isreg() or member.issparse() or suffix not in columns:
                    continue
                key = (f"{folder}/{stem}" if folder else stem).encode()
                spans = rows.setdefault((path, key), np.full((3, 2), -1, np.int64))
                spans[columns[suffix]] = member.offset_data, member.size
    keys = np.array([key for _, key in rows], dtype=np.bytes_)
    sha = hashlib.sha256()
    for array in (keys, np.array(list(rows.values()), np.int64).reshape(-1)):
        data = array.view(np.uint8).data
        sha.update(b"%d:" % len(data))
        sha.update(data)
    return sha.hexdigest()


def test_keys_and_spans_have_the_digest_that_runs_have_recorded(tmp_path):
    """Keys of several lengths, absent members, and a tar without records."""
    write_tars(tmp_path, 2)
    for name, content in whole_tars().items():
        (tmp_path / f"{name}.tar").write_bytes(content)
    write_tar(tmp_path / "none.tar", {"readme.md": b""})
    digest = build_source(spec(tmp_path)).content()["members and their order"]
    assert digest == former_digest(sorted(tmp_path.glob("*.tar")))
    empty = build_source(spec(tmp_path, "none.tar")).content()
    assert empty["members and their order"] == former_digest([tmp_path / "none.tar"])


def test_only_a_changed_or_added_tar_is_scanned(tmp_path, scanned):
    write_tars(tmp_path, 4)
    before = build_source(spec(tmp_path))
    assert len(scanned) == 4
    scanned.clear()
    assert build_source(spec(tmp_path)).keys() == before.keys() and not scanned
    write_tar(tmp_path / "00001.tar", {"new.jpg": b"x", "new.md": b""})
    changed = build_source(spec(tmp_path))
    assert scanned == ["00001.tar"] and changed.left_out == {"other suffix": 1}
    assert changed.keys()[3:5] == ["00001/new", "00002/0020"]
    write_tar(tmp_path / "00009.tar", {"last.txt": b"x"})
    assert build_source(spec(tmp_path)).keys() == [*changed.keys(), "00009/last"]
    (tmp_path / "00000.tar").unlink()
    left = build_source(spec(tmp_path))
    assert scanned == ["00001.tar", "00009.tar"]
    assert left.keys() == [*changed.keys()[3:], "00009/last"]
    assert left.record(0).captions == () and left.record(1).captions == ("text 0",)
    # Of former indices one is kept, for workers that start now. What is open stays
    # readable.
    assert len(list(tmp_path.glob("index/*/index-*"))) == 2
    assert before.keys()[0] == "00000/0000"
    # A tar of the same size at another time is read again.
    os.utime(tmp_path / "00002.tar", ns=(0, 0))
    build_source(spec(tmp_path))
    assert scanned[2:] == ["00002.tar"]


def test_a_failed_build_keeps_the_tars_that_are_whole(tmp_path, scanned):
    write_tars(tmp_path, 6)
    whole = {n: (tmp_path / f"0000{n}.tar").read_bytes() for n in (1, 4)}
    for number in whole:
        (tmp_path / f"0000{number}.tar").write_bytes(b"?" * 2000)
    with pytest.raises(ValueError, match=r"00001\.tar is not a readable(.|\n)*00004"):
        build_source(spec(tmp_path))
    scanned.clear()
    for number, content in whole.items():
        (tmp_path / f"0000{number}.tar").write_bytes(content)
    assert len(build_source(spec(tmp_path))) == 18
    assert scanned == ["00001.tar", "00004.tar"]


def python(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=harness.environment()
    )


BUILD = """
import json, sys
from blip2_jax.data.sources.registry import build_source
build_source(json.loads(sys.argv[1]))
"""


# Takes a fifth of a second for each tar, so that there is time to kill it.
SLOW_BUILD = f"""
import time
from blip2_jax.data.sources import tar_scan_process
scan_tar = tar_scan_process.scan_tar
tar_scan_process.scan_tar = lambda path: (time.sleep(0.2), scan_tar(path))[1]
{BUILD}"""


def test_a_killed_build_continues(tmp_path, scanned):
    write_tars(tmp_path, 1, records=300)
    for number in range(1, 30):
        os.link(tmp_path / "00000.tar", tmp_path / f"{number:05d}.tar")
    process = python(SLOW_BUILD, json.dumps(spec(tmp_path)))
    while len(list(tmp_path.glob("index/*/parts/*.npz"))) < 4:  # one may be unfinished
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    source = build_source(spec(tmp_path))
    assert 0 < len(scanned) <= 27
    assert len(source) == 9000 and source.record(8999).captions == ("text 299",)
    assert not list(tmp_path.glob("index/*/parts"))


def test_processes_build_the_same_index(tmp_path, monkeypatch):
    """Also from a script without a main guard, as users write them."""
    write_tars(tmp_path, 2 * tar_scanning._MIN_PER_PROCESS)
    monkeypatch.setattr(tar_scanning, "available_cores", lambda: [0])
    expected = build_source(spec(tmp_path))
    assert expected.content() and stored(tmp_path)
    parallel = {**spec(tmp_path), "index_directory": str(tmp_path / "other")}
    code = "from blip2_jax.data.sources import tar_scanning\n"
    code += "tar_scanning.available_cores = lambda: [0, 1]\n"
    (tmp_path / "script.py").write_text(code + BUILD)
    subprocess.run(
        [sys.executable, tmp_path / "script.py", json.dumps(parallel)],
        env=harness.environment(),
        check=True,
    )
    for name, path in stored(tmp_path).items():
        (other,) = tmp_path.glob(f"other/*/index-*/{name}")
        assert other.read_bytes() == path.read_bytes()


def test_processes_name_the_damaged_tars(tmp_path, monkeypatch):
    write_tars(tmp_path, 2 * tar_scanning._MIN_PER_PROCESS)
    for number in range(5):
        (tmp_path / f"0000{number}.tar").write_bytes(b"?" * 2000)
    monkeypatch.setattr(tar_scanning, "available_cores", lambda: [0, 1])
    with pytest.raises(ValueError, match=r"00002\.tar is not a(.|\n)*and 2 more tars"):
        build_source(spec(tmp_path))


def test_builders_at_once_scan_each_tar_once(tmp_path, scanned):
    write_tars(tmp_path, 5)
    sources = []
    threads = [
        threading.Thread(target=lambda: sources.append(build_source(spec(tmp_path))))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(scanned) == 5 and [len(source) for source in sources] == [15] * 3


def test_an_index_that_cannot_be_kept_is_temporary(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    write_tars(tmp_path, 2)
    (tmp_path / "index").write_text("a file, no directory")
    source = build_source(spec(tmp_path))
    assert len(source) == 6 and source.record(5).captions == ("text 2",)
    assert "set index_directory of the source" in caplog.text
    (folder,) = tmp_path.glob("blip2_jax-tars-*")
    del source
    assert not folder.exists()
    with pytest.raises(ValueError, match=r"index_directory.*must be a local directory"):
        build_source({**spec(tmp_path), "index_directory": "s3://bucket/index"})


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(bytes(content))


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "garbled": lambda path: path.write_bytes(b"garbage" * 99),
    "another file": lambda path: path.write_bytes(b'{"version": 1}'),
    "cut": cut,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "a bit": flip,
    "missing": lambda path: path.unlink(),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("file", ["header.json", "records.npy", "keys.npy"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_index_is_made_again(tmp_path, file, damage):
    write_tars(tmp_path, 2)
    keys = build_source(spec(tmp_path)).keys()
    whole = {name: path.read_bytes() for name, path in stored(tmp_path).items()}
    damage(stored(tmp_path)[file])
    assert build_source(spec(tmp_path)).keys() == keys
    for name, path in stored(tmp_path).items():
        assert path.read_bytes() == whole[name]


def test_a_damaged_part_of_a_build_is_made_again(tmp_path, scanned):
    write_tars(tmp_path, 3)
    whole = (tmp_path / "00002.tar").read_bytes()
    (tmp_path / "00002.tar").write_bytes(b"?" * 2000)
    with pytest.raises(ValueError, match=r"00002\.tar"):
        build_source(spec(tmp_path))
    parts = list(tmp_path.glob("index/*/parts/*.npz"))
    assert len(parts) == 2
    flip_middle = bytearray(parts[0].read_bytes())
    flip_middle[len(flip_middle) // 2] ^= 1
    parts[0].write_bytes(flip_middle)
    (tmp_path / "00002.tar").write_bytes(whole)
    scanned.clear()
    assert len(build_source(spec(tmp_path))) == 9 and len(scanned) == 2


def key_of(source, index):
    return source.record(index).key


def test_another_process_opens_the_same_index(tmp_path):
    write_tars(tmp_path, 40, records=50)
    source = build_source(spec(tmp_path))
    state = pickle.dumps(source)
    assert len(state) < 10_000  # paths, no records
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        assert pool.apply(key_of, (source, 1999)) == "00039/03949"
    (stored(tmp_path)["records.npy"]).unlink()
    with pytest.raises(ValueError, match=r"records\.npy"):
        pickle.loads(state)


MEASURE = """
import json, sys, time
from blip2_jax.data.sources import tars
from blip2_jax.data.sources.registry import build_source
from benchmarks.large_index import memory_mb
import numpy as np
build_source(json.loads(sys.argv[2])).content()
before = memory_mb("self")
start = time.perf_counter()
source = build_source(json.loads(sys.argv[1]))
source.content()
seconds = time.perf_counter() - start
for index in np.random.default_rng(0).integers(0, len(source), 10_000).tolist():
    assert source.record(index).captions == ("a red thing",)
print(json.dumps([len(source), seconds, *(np.subtract(memory_mb("self"), before))]))
"""


@pytest.mark.skipif(
    not pathlib.Path("/proc/self/smaps_rollup").exists(), reason="Linux"
)
def test_a_million_records_are_opened_and_not_loaded(tmp_path):
    """The columns take 43 MB; keys and spans in memory took 57 MB in each process."""
    small = write_large_set(tmp_path / "small", 10_000)
    large = write_large_set(tmp_path / "large", 1_000_000)
    process = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(large), json.dumps(small)],
        env=harness.environment(),
        stdout=subprocess.PIPE,
        check=True,
    )
    records, seconds, private, pss = json.loads(process.stdout)
    assert records == 1_000_000
    assert seconds < 2
    assert private < 5 and pss < 5, (private, pss)


def test_head_of_a_column_has_room_for_any_count():
    sizes = {len(npy_head(np.dtype(np.uint8), count)) for count in (0, 9, 10**15)}
    assert len(sizes) == 1


def reads_of(size, members):
    """Blocks that are read of a file of headers with `size` bytes between them."""
    reads = []

    def read(offset, count):
        reads.append(count)
        return bytes(max(0, min(count, members * size - offset)))

    file = ReadAhead(read, 2**18, 2**23)
    for member in range(members):
        assert len(file.read(member * size, 512)) == 512
    return reads


def test_headers_are_read_in_few_requests_and_large_members_are_left_out():
    reads = reads_of(30_000, 2000)  # 60 MB of small members
    assert len(reads) < 15
    reads = reads_of(2**24, 50)  # 800 MB of large ones
    assert len(reads) == 50 and sum(reads) < 50 * 2**19


@pytest.mark.parametrize("count", [1, 4096, 10_001])
def test_selections_are_the_indices_of_a_mask(count):
    mask = np.random.default_rng(0).random(count) < 0.3
    selection = BitSelection(mask)
    assert [selection[n] for n in range(len(selection))] == np.flatnonzero(
        mask
    ).tolist()
    with pytest.raises(IndexError):
        selection[len(selection)]


def test_headers_on_a_store_are_read_by_ranges(flaky_s3, tmp_path):
    """Small members: a few requests of many headers; large ones: not the members."""
    bucket, proxy = flaky_s3
    (tmp_path / "tars").mkdir()
    small = {
        f"{n:04d}.{kind}": b"x" * 400 for n in range(500) for kind in ("jpg", "txt")
    }
    write_tar(tmp_path / "tars" / "small.tar", small)
    large = {f"{n:04d}.jpg": b"x" * 2**21 for n in range(8)}
    write_tar(tmp_path / "tars" / "large.tar", large)
    local = build_source(spec(tmp_path / "tars"))
    for path in (tmp_path / "tars").glob("*.tar"):
        bucket.client().upload_file(str(path), bucket.bucket, f"tars/{path.name}")
    remote = {**spec(tmp_path), "paths": f"{bucket.root}/tars/*.tar"}
    del proxy.requests[:]
    source = build_source(remote)
    answers = {"small": [], "large": []}
    for method, path, size in proxy.requests:
        if method == "GET" and path.endswith(".tar"):
            answers[path.rpartition("/")[2].removesuffix(".tar")].append(size)
    assert len(answers["small"]) <= 6  # of 1000 headers in 1 MB
    assert sum(answers["large"]) < 2**21 * 8 / 4
    assert source.keys() == local.keys()
    assert (
        source.content()["members and their order"]
        == (local.content()["members and their order"])
    )
    assert source.record(8).captions == local.record(8).captions
    del proxy.requests[:]
    build_source(remote)  # asks for the states alone
    assert not [p for m, p, _ in proxy.requests if m == "GET" and p.endswith(".tar")]
