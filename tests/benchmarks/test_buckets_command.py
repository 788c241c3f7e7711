"""What length buckets gain: the command on real captions, at small size."""

import sys

import pytest

from benchmarks import length_buckets

BUCKETS = ("24", "32")


def tables(printed):
    """Rows of every table: their first cell and the others."""
    tables = []
    for part in printed.split("\n\n"):
        if part.startswith("|"):
            lines = [
                [cell.strip() for cell in line.strip("|").split("|")]
                for line in part.strip().splitlines()
            ]
            tables.append({first: rest for first, *rest in lines[2:]})
    return tables


@pytest.mark.slow  # reads all captions
def test_lengths_and_times(testdata, monkeypatch, capsys):
    command = ["--time", "--size", "tiny", "--steps", "2", "--epochs", "1"]
    command += ["--batch_sizes", "64", "--buckets", *BUCKETS]
    monkeypatch.setattr(sys, "argv", ["length_buckets.py", *command])
    length_buckets.main()
    lengths, times = tables(capsys.readouterr().out)
    to_24, to_32, mean, _, saved, of_features = lengths["64"]
    share = float(to_24.strip("%")) / 100
    assert 0 < share < 1 and to_32 == f"{1 - share:.1%}"
    assert float(mean) == pytest.approx(32 - 8 * share, abs=0.06)
    assert 0 < float(saved.strip("%")) < float(of_features.strip("%")) < 25
    assert list(times) == ["24", "all"] and times["24"] == times["all"]
    steps, *seconds, ratio = times["all"]
    assert steps == "2" and all(float(value) > 0 for value in (*seconds, ratio))
