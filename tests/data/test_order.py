"""Orders are permutations, depend on seed, source and epoch, and need no memory."""

import numpy as np
import pytest

from blip2_jax.data.mixture import Mixture
from blip2_jax.data.order import RngPurpose, position_rng, shuffled_index
from blip2_jax.data.sources.base import Record, Source


class Numbers(Source):
    def __init__(self, name: str, count: int):
        self.name, self._count = name, count

    def __len__(self) -> int:
        return self._count

    def record(self, index: int) -> Record:
        return Record(f"{self.name}{index}", index)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 100, 1000])
def test_every_epoch_is_a_permutation(count):
    epochs = [
        [shuffled_index(epoch * count + i, count, seed=3) for i in range(count)]
        for epoch in range(3)
    ]
    for epoch in epochs:
        assert sorted(epoch) == list(range(count))
    if count > 10:
        assert epochs[0] != epochs[1] != epochs[2]
        other = [shuffled_index(i, count, seed=4) for i in range(count)]
        source = [shuffled_index(i, count, seed=3, source=1) for i in range(count)]
        assert epochs[0] != other and epochs[0] != source


def test_the_order_looks_random():
    order = np.array([shuffled_index(i, 4001, seed=0) for i in range(4001)])
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(order, np.arange(4001))[0, 1]) < 0.05
    first = [shuffled_index(0, 10, seed=seed) for seed in range(2000)]
    assert np.bincount(first, minlength=10).min() > 140


def test_large_sources_need_no_table():
    count = 129_000_000
    drawn = {shuffled_index(i, count, seed=1) for i in range(1000)}
    assert len(drawn) == 1000 and max(drawn) < count


def test_random_numbers_depend_on_position_and_purpose():
    def draw(*args):
        return position_rng(*args).random()

    assert draw(1, 5, RngPurpose.TEXT) == draw(1, 5, RngPurpose.TEXT)
    others = {
        draw(1, 5, RngPurpose.TEXT),
        draw(1, 6, RngPurpose.TEXT),
        draw(2, 5, RngPurpose.TEXT),
        draw(1, 5, RngPurpose.IMAGE),
    }
    assert len(others) == 4


def test_shares_hold_from_the_start():
    mixture = Mixture([Numbers("a", 7), Numbers("b", 5)], [3, 1])
    sources = [mixture.locate(position).source for position in range(40_000)]
    for window in (8, 100, 40_000):
        assert abs(np.mean(sources[:window]) - 0.25) < 2 / window
    assert mixture.shares == (0.75, 0.25)


def test_without_weights_every_image_is_shown_equally_often():
    mixture = Mixture([Numbers("a", 300), Numbers("b", 100)], None)
    counts: dict[tuple[int, int], int] = {}
    for position in range(4000):
        draw = mixture.locate(position)
        drawn = draw.source, mixture.record_index(draw, seed=0)
        counts[drawn] = counts.get(drawn, 0) + 1
    assert len(counts) == 400 and set(counts.values()) == {10}


def test_each_source_runs_through_its_own_epochs():
    mixture = Mixture([Numbers("a", 6), Numbers("b", 6)], [1, 1])
    draws = [mixture.locate(position) for position in range(40_000, 40_012)]
    ordinals = [draw.ordinal for draw in draws if draw.source == 0]
    assert ordinals == list(range(ordinals[0], ordinals[0] + 6))


def test_image_ids_are_unique_across_sources():
    mixture = Mixture([Numbers("a", 7), Numbers("b", 5)], None)
    assert mixture.image_id_offsets == (0, 7)


def test_unusable_mixtures_are_refused():
    with pytest.raises(ValueError, match="source b is empty"):
        Mixture([Numbers("a", 7), Numbers("b", 0)], None)
    with pytest.raises(ValueError, match="share below"):
        Mixture([Numbers("a", 7), Numbers("b", 5)], [1, 1e-9])


def test_image_ids_beyond_32_bits_are_refused():
    """Batches hold int32 ids; the paper's 129 M images are far below."""
    paper = Mixture([Numbers("a", 129_000_000), Numbers("b", 2**30)], None)
    assert paper.image_id_offsets == (0, 129_000_000)
    draw = paper.locate(10**15)
    assert 0 <= paper.record_index(draw, seed=0) < len(paper.sources[draw.source])
    with pytest.raises(ValueError, match=r"2147483648 images exceed 32-bit ids"):
        Mixture([Numbers("a", 2**30), Numbers("b", 2**30)], None)
