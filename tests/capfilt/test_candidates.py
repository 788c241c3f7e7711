"""Captions are merged, ranked and kept in an order that depends on nothing else."""

import numpy as np

from blip2_jax.capfilt.candidates import (
    GENERATED,
    WEB,
    Candidate,
    collect_candidates,
    rank_candidates,
)
from blip2_jax.capfilt.counts import CapFiltCounts, sum_counts
from blip2_jax.data.sources.base import BrokenSample


def test_captions_that_training_reads_alike_are_merged():
    candidates = collect_candidates(
        ["A dog,\n on grass!", "  ", "a cat"],
        ["a cat.", "a dog, on grass", "!", "dogs"],
    )
    assert candidates == [
        Candidate("A dog, on grass!", WEB, 2),
        Candidate("a cat", WEB, 2),
        Candidate("dogs", GENERATED, 1),
    ]
    assert collect_candidates(["..."], []) == []


def test_the_best_are_kept_and_the_first_of_equal_ones():
    candidates = collect_candidates(["a"], ["b", "c", "d"])
    ranked = rank_candidates(candidates, np.array([0.5, 0.7, 0.5, 0.1]), keep=2)
    assert list(ranked.kept) == [1, 0]
    content = ranked.as_json()
    assert content["captions"] == ["b", "a"] and content["scores"] == [0.7, 0.5]
    assert [each["text"] for each in content["candidates"]] == ["a", "b", "c", "d"]
    assert [each["kept"] for each in content["candidates"]] == [
        True,
        True,
        False,
        False,
    ]
    assert len(rank_candidates(candidates[:1], np.array([-0.5]), keep=2).kept) == 1


def test_counts_of_shards_add_up():
    candidates = collect_candidates(["a", "A"], ["b", "c"])
    counts = CapFiltCounts()
    counts.add_empty(["a", "A"], ["b", "!", "c"])
    counts.add_image(rank_candidates(candidates, np.array([0.1, 0.255, -0.001]), 2))
    counts.add_broken(BrokenSample("missing image", "x"))
    counts.without_captions += 1
    total = sum_counts([counts.as_json()] * 30)
    assert total.broken.total() == 30 and len(total.broken_places) == 20
    total = sum_counts([counts.as_json(), counts.as_json()])
    assert total.images == 2 and total.records == 6
    assert total.broken == {"missing image": 2}
    assert total.captions[WEB] == {
        "all": 2,
        "merged": 2,
        "kept": 2,
        "best": 0,
        "empty": 0,
    }
    assert total.captions[GENERATED] == {
        "all": 4,
        "merged": 0,
        "kept": 2,
        "best": 2,
        "empty": 2,
    }
    assert total.histograms[GENERATED] == {"25": 2, "-1": 2}
