"""A step's numbers are the same on any mesh, in one process or several."""

import numpy as np
import one_step as one_step_module
import pytest
from one_step import one_step
from processes import run_together

ONE = (1, 1, 1)
MESHES = {
    2: [(2, 1, 1), (1, 2, 1), (1, 1, 2)],
    4: [(4, 1, 1), (1, 4, 1), (1, 1, 4), (2, 1, 2)],
    8: [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)],
}
FAST = [("stage1", (1, 4, 1)), ("stage2", (2, 2, 2))]
SLOW = [
    (task, axes)
    for task in ("stage1", "stage2") for meshes in MESHES.values() for axes in meshes
    if (task, axes) not in FAST
]


def assert_same_step(found, expected):
    """Losses, drawn negatives, gradients and new parameters."""
    assert found[2].keys() == expected[2].keys()
    for name, value in expected[2].items():
        rtol = 0 if name.startswith("negatives") else 1e-5
        np.testing.assert_allclose(found[2][name], value, rtol=rtol, err_msg=name)
    for path, value in expected[0].items():
        np.testing.assert_allclose(found[0][path], value, atol=1e-5, err_msg=path)
    for path, value in expected[1].items():
        bound = 1e-5 * np.abs(value).max() + 2e-6
        np.testing.assert_allclose(
            found[1][path], value, rtol=0, atol=bound, err_msg=path
        )


@pytest.mark.parametrize(
    ("task", "axes"),
    [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_a_mesh_changes_nothing(task, axes):
    assert_same_step(one_step(task, axes), one_step(task, ONE))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "axes"),
    # Of the first two, (1, 1, 8) lets both processes read all rows.
    [("stage1", (2, 2, 2)), ("stage1", (1, 1, 8)), ("stage2", (2, 2, 2))],
)
def test_two_processes_change_nothing(tmp_path, task, axes):
    out = tmp_path / "step.npz"
    run_together(one_step_module.__file__, task, ",".join(map(str, axes)), out)
    parts = ({}, {}, {})
    with np.load(out) as arrays:
        for name, value in arrays.items():
            part, _, path = name.partition(":")
            parts[int(part)][path] = value
    assert_same_step(parts, one_step(task, ONE))
