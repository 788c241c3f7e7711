"""Jobs over shards on a Ray cluster of two nodes, of which one is lost."""

import threading
import time

import pytest

from blip2_jax.parallel import shard_jobs
from tests.support.shard_squares import NeverOpens, Squares

ray = pytest.importorskip("ray")
COUNT = 12
# A lost node is noticed within two seconds, not half a minute.
HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes of one core and 80 MB of shared objects each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", "1")
    node = {"num_cpus": 1, "object_store_memory": 80_000_000}
    head = node | {"include_dashboard": False, "_system_config": HEALTH}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.other_node = cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_a_lost_node_changes_nothing(cluster, tmp_path):
    alone = Squares(tmp_path / "alone", count=COUNT)
    shard_jobs.run_shards(alone)
    log = tmp_path / "log"
    log.mkdir()
    job = Squares(tmp_path / "ray", count=COUNT, log=log, seconds=0.5)

    def lose_a_node():
        while len(list(job.output.glob("*.report.json"))) < 4:
            time.sleep(0.05)
        cluster.remove_node(cluster.other_node, allow_graceful=False)

    killer = threading.Thread(target=lose_a_node)
    killer.start()
    reports = shard_jobs.run_shards(job, processes=2, runner="ray")
    killer.join()
    assert reports == [{"shard": shard} for shard in range(COUNT)]
    assert files(job.output) == files(alone.output)
    attempts = [path.name.split(".") for path in log.iterdir()]
    assert len({process for _, _, process in attempts}) >= 2  # both nodes worked
    assert COUNT <= len(attempts) <= COUNT + 1  # what was finished is not repeated
    with pytest.raises(ValueError, match="no inputs"):
        shard_jobs.run_shards(NeverOpens(tmp_path / "never"), runner="ray")
    failing = Squares(tmp_path / "failing", fail_at=2)
    with pytest.raises(shard_jobs.ShardsFailed, match="no square"):
        shard_jobs.run_shards(failing, processes=None, runner="ray")


def files(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}
