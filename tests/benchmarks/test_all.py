"""The command lines of all benchmarks of a CPU."""

import pytest

from benchmarks import all as everything
from benchmarks import harness


@pytest.fixture
def commands(monkeypatch):
    """Flags of each benchmark that `benchmarks.all` would run."""

    def of(*flags):
        flags_of = {}

        class Ended:
            returncode = 0

        def run(command, **_):
            name = command[2].removeprefix("benchmarks.")
            assert (harness.ROOT / "benchmarks" / f"{name}.py").exists()
            flags_of[name] = command[3:]
            return Ended

        monkeypatch.setattr(everything.sys, "argv", ["all.py", *flags])
        monkeypatch.setattr(everything.subprocess, "run", run)
        assert everything.main() == 0
        return flags_of

    return of


def test_every_script_gets_its_flags(commands):
    peers = ["--lavis", "checkout", "--lavis_python", "python"]
    counts = ["--rounds", "3", "--threads", "1"]
    keras = ["--keras_python", "third"]
    photos = ["--photos", "a.tar", "--photos", "b.tar"]
    arguments = [
        "--torch_python",
        "other",
        "--tiny",
        "--write",
        *keras,
        *peers,
        *counts,
        *photos,
    ]
    flags_of = commands(*arguments)
    assert list(flags_of) == list(everything.BENCHMARKS)
    for name, flags in flags_of.items():
        own = {
            "stage2_step": keras,
            "generation": ["--torch_python", "other", *keras],
            "image_pipeline": ["--torch_python", "other", *photos],
        }.get(name, [])
        assert flags == ["--tiny", "--write", *counts, *peers, *own]


def test_without_photos_there_is_no_image_pipeline(commands, capsys):
    flags_of = commands()
    assert set(everything.BENCHMARKS) - set(flags_of) == {"image_pipeline"}
    assert not any(flags_of.values())  # each script's own defaults
    assert "image_pipeline is skipped: it needs --photos" in capsys.readouterr().out
