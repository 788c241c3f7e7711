"""The command lines of all benchmarks of a CPU."""

import pytest

from benchmarks import all as everything
from benchmarks import harness


@pytest.fixture
def commands(monkeypatch):
    """Of the scripts that `benchmarks/all.py` with these flags would run."""

    def of(*flags):
        found = {}

        class Ended:
            returncode = 0

        def run(command, **_):
            script = command[1].removeprefix("benchmarks/")
            assert (harness.ROOT / command[1]).exists()
            found[script] = command[2:]
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
    assert list(found) == list(everything.SCRIPTS)
    for script, flags in found.items():
        own = {
            "generation.py": ["--torch_python", "other"],
            "image_pipeline.py": photos,
        }.get(script, [])
        assert flags == ["--tiny", "--write", *counts, *peers, *own]


def test_without_photos_there_is_no_image_pipeline(commands, capsys):
    found = commands()
    assert set(everything.SCRIPTS) - set(found) == {"image_pipeline.py"}
    assert not any(found.values())  # each script's own defaults
    assert "image_pipeline.py is left out: it needs --photos" in capsys.readouterr().out
