"""What processes tell each other, checked in each of them (`test_hosts.py`)."""

import jax
import numpy as np

from blip2_jax import hosts, sharding

B = 16


def check_rows(axes, own):
    """A batch that is read in parts is whole, whichever rows a process holds."""
    mesh = sharding.make_mesh(*axes)
    rows = sharding.local_rows(B, mesh)
    assert len(rows) == own, (axes, rows)
    batch = sharding.global_batch({"x": np.arange(B)[rows]}, mesh)
    np.testing.assert_array_equal(hosts.fetch(batch)["x"], np.arange(B))


if __name__ == "__main__":
    hosts.join()
    index = jax.process_index()
    assert hosts.is_first() == (index == 0)
    assert hosts.agree(0.1 + index) == 0.1
    assert hosts.total(3 + index) == 7
    check_rows((8, 1, 1), B // 2)
    check_rows((2, 2, 2), B // 2)
    check_rows((1, 1, 8), B)
    hosts.wait("all is checked")
