"""The command lines of all benchmarks of a CPU."""

import pytest

from benchmarks import all as everything
from benchmarks import harness


@pytest.fixture
def commands(monkeypatch):
    """Flags of each benchmark that `benchmarks.all` would run."""

    def of(*flags):
        found = {}

        class Ended:
            returncode = 0

        def run(command, **_):
            name = command[2].removeprefix("benchmarks.")
            assert (harness.ROOT / "benchmarks" / f"{name}.py").exists()
            found[name] = command[3:]
            return Ended

        monkeypatch.setattr(everything.sys, "argv", ["all.py", *flags])
        monkeypatch.setattr(everything.subprocess, "run", run)
        assert everything.main() == 0
        return found

    return of


def test_every_script_gets_its_flags(commands):
    peers = ["--lavis", "checkout", "--lavis_python", "python"]
    counts = ["--rounds", "3", "--threads", "1"]
    photos = ["--photos", "a.tar", "--photos", "b.tar"]
    given = ["--torch_python", "other", "--tiny", "--write", *peers, *counts, *photos]
    found = commands(*given)
    assert list(found) == list(everything.BENCHMARKS)
    for name, flags in found.items():
        own = {
            "generation": ["--torch_python", "other"],
            "image_pipeline": photos,
        }.get(name, [])
        assert flags == ["--tiny", "--write", *counts, *peers, *own]


def test_without_photos_there_is_no_image_pipeline(commands, capsys):
    found = commands()
    assert set(everything.BENCHMARKS) - set(found) == {"image_pipeline"}
    assert not any(found.values())  # each script's own defaults
    assert "image_pipeline is skipped: it needs --photos" in capsys.readouterr().out
