"""Work in threads, ahead of the use of its results."""

import threading
import time

import pytest

from blip2_jax.data.prefetch import in_batches, map_ahead


def test_results_are_in_order_and_only_a_few_are_ahead():
    started, lock = [], threading.Lock()

    def square(number):
        with lock:
            started.append(number)
        time.sleep(0.01 if number % 2 else 0.0)
        return number**2

    results = map_ahead(square, range(20), ahead=4)
    assert next(results) == 0
    assert max(started) < 4
    assert list(results) == [number**2 for number in range(1, 20)]
    assert list(map_ahead(square, [], ahead=4)) == []


def test_an_exception_is_raised_in_its_place():
    results = map_ahead(lambda number: 1 // number, [1, 1, 0, 1], ahead=2)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_batches():
    assert list(in_batches(iter(range(5)), 2)) == [[0, 1], [2, 3], [4]]
