"""Checks of the communication between processes, run in each (`test_hosts.py`)."""

import jax
import numpy as np

from blip2_jax.parallel import hosts, sharding

B = 16


def check_rows(axes, count):
    """Check that a batch read in parts is complete for any mesh."""
    mesh = sharding.make_mesh(*axes)
    rows = sharding.local_rows(B, mesh)
    assert len(rows) == count, (axes, rows)
    batch = sharding.make_global_batch({"x": np.arange(B)[rows]}, mesh)
    np.testing.assert_array_equal(hosts.to_host(batch)["x"], np.arange(B))


def check_shares(total):
    """Check that gathered shares are complete and in order in every process."""
    share = hosts.own_share()
    own = np.arange(total, dtype=np.float32)[list(share.indices(total))]
    rows = np.stack([own, -own], axis=1)
    np.testing.assert_array_equal(
        hosts.all_gather_rows(rows, share)[:, 1], -np.arange(total, dtype=np.float32)
    )
    values = hosts.all_gather({"é": own.tolist()}, share)
    assert sorted(x for value in values for x in value["é"]) == list(range(total))


if __name__ == "__main__":
    hosts.join()
    index = jax.process_index()
    assert hosts.is_first() == (index == 0)
    assert hosts.broadcast_from_first(0.1 + index) == 0.1
    assert hosts.sum_over_hosts(3 + index) == 7
    assert hosts.sum_each_over_hosts([index, 5]) == [1, 10]
    check_rows((8, 1, 1), B // 2)
    check_rows((2, 2, 2), B // 2)
    check_rows((1, 1, 8), B)
    check_shares(5)
    check_shares(1)  # one process has no item
    hosts.barrier("end of checks")
