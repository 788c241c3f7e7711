"""The paper's widths, batches and meshes for 256 chips, with few blocks."""

import pytest
from ml_collections import ConfigDict

from blip2_jax.configs import stage1_vitg, stage2_flant5xxl
from blip2_jax.planning.collectives import by_kind
from blip2_jax.planning.plan import Plan, make_plan
from blip2_jax.planning.topology import open_topology

pytest.importorskip("libtpu", reason="libtpu is not installed")
pytestmark = pytest.mark.slow
SLICE = "v5e:16x16"


def planned(config: ConfigDict, batch: int, depths: dict[str, int], **mesh) -> Plan:
    config = config.copy_and_resolve_references().unlock()
    config.model.overrides = ConfigDict(
        {part: {"depth": depth} for part, depth in depths.items()}
    )
    config.batch_size = batch
    config.mesh.update(mesh)
    return make_plan(config.lock(), open_topology(SLICE))


def test_negatives_of_256_chips_cross_a_grid():
    """Frozen features pass 15 chips of a column, then 15 of a line."""
    depths = {"vision": 1, "qformer": 2}
    plan = planned(stage1_vitg.get_config(), 1792, depths)
    assert plan.fits and plan.devices == 256
    rings = [c for c in plan.collectives if c.kind == "collective-permute"]
    shard = 1792 // 256 * 257 * 1408 * 2
    assert sum(c.total_bytes for c in rings) == 15 * shard
    assert by_kind(plan.collectives)["all-gather"] == (0, 0, 0.0)
    exchanged = [c for c in plan.collectives if c.kind == "all-to-all"]
    # Of 16 shards each chip keeps its own; similarities are exchanged besides.
    assert 16 * shard <= sum(c.total_bytes for c in exchanged) < 17 * shard
    # Gradients of the word table: of the tied head, and of all look-ups together.
    reduced = [s for c in plan.collectives if c.kind == "all-reduce" for s in c.shapes]
    tables = sorted(shape for shape in reduced if "[30523,768]" in shape)
    assert tables == ["bf16[30523,768]", "f32[30523,768]"]


def test_a_language_model_divided_by_four_and_four():
    """FlanT5-XXL's widths: what a chip holds and is sent is a part of them."""
    depths = {"vision": 2, "qformer": 2, "language_model": 2}
    plan = planned(stage2_flant5xxl.get_config(), 1536, depths, fsdp=4, tensor=4)
    assert plan.fits and plan.mesh == {"data": 16, "fsdp": 4, "tensor": 4}
    blocks = 2 * (4 * 4096 * 4096 + 3 * 4096 * 10240)  # of the encoder; more elsewhere
    assert 2 * blocks / 16 < plan.memory.frozen < 2**28
    gathered = [c for c in plan.collectives if c.kind == "all-gather"]
    shapes = [shape for each in gathered for shape in each.shapes]
    assert any("4096,2560]" in shape for shape in shapes)  # a quarter of 10240
    assert not [shape for shape in shapes if "10240" in shape]
