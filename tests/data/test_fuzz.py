"""Damaged files are read, refused with their name, or have broken records."""

import pytest

from tests.support.fuzzing import LAYOUTS, run_cases


def test_a_few_hundred_damaged_files(tmp_path):
    problems = run_cases(tmp_path, LAYOUTS, 0, 20)
    assert not problems, "\n".join(problems)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_thousands_of_damaged_files(tmp_path, layout):
    problems = run_cases(tmp_path, (layout,), 20, 300)
    assert not problems, "\n".join(problems)
