"""Traffic of a compiled program: loops multiplied out, groups, bytes by kind."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from blip2_jax.parallel.sharding import make_mesh
from blip2_jax.planning.collectives import KINDS, Collective, by_kind, collectives

P = PartitionSpec
# A TPU's own way of writing: trip counts in the condition, groups of a mesh, an
# all-reduce in a fusion that is a reduce-scatter, starts with tuples, one exchange that
# is spread over two fusions.
TPU = """HloModule jit_step, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%all-reduce-scatter.1 (input: f32[64,256]) -> f32[8,256] {
  %input = f32[64,256]{1,0:T(8,128)} parameter(0)
  %all-reduce.2 = f32[64,256]{1,0:T(8,128)} all-reduce(%input), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}

%cond (p: (s32[], bf16[7,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %turn = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%turn, %limit), direction=LT
}

%body (p: (s32[], bf16[7,64])) -> (s32[], bf16[7,64]) {
  %start = (bf16[7,64]{1,0:T(8,128)(2,1)}, bf16[7,64]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %done = bf16[7,64]{1,0:T(8,128)(2,1)} collective-permute-done(%start)
}

%fused (input.2: f32[2]) -> (f32[2], f32[8], u32[]) {
  %gather = f32[8]{0} all-gather(%input.2), channel_id=4, replica_groups=[2,4]<=[8], dimensions={0}
}

ENTRY %main (a: f32[64,256]) -> f32[8,256] {
  %loop = (s32[]{:T(128)}, /*index=1*/bf16[7,64]{1,0:T(8,128)(2,1)}) while(%init), condition=%cond, body=%body, metadata={op_name="jit(step)/ring"}
  %whole = f32[2,8]{1,0} all-gather(%a), replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, dimensions={0}
  %begun = (f32[2]{0}, f32[8]{0}, u32[]{:S(2)}) fusion(%a), kind=kCustom, calls=%fused
  %ended = f32[8]{0} fusion(%begun), kind=kCustom, calls=%fused
  ROOT %fusion = f32[8,256]{1,0:T(8,128)} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1, metadata={op_name="jit(step)/gradients"}
}
"""  # noqa: E501


def test_text_of_a_tpu():
    ring, gather, spread, scatter = collectives(TPU, 8)
    assert ring == Collective(
        "collective-permute", ("bf16[7,64]",), 7 * 64 * 2, 8, 5, "jit(step)/ring"
    )
    assert (gather.kind, gather.bytes, gather.group) == ("all-gather", 64, 2)
    assert (scatter.kind, scatter.bytes) == ("reduce-scatter", 64 * 256 * 4)
    assert scatter.name == "jit(step)/gradients"
    assert (spread.bytes, spread.group, spread.channel) == (32, 4, "4")
    assert by_kind([ring, gather, scatter])["collective-permute"] == (5, 4480, 4480.0)


def test_what_a_ring_sends():
    each = lambda kind: Collective(kind, ("f32[8]",), 32, 4, 3, "").sent_bytes
    assert [each(kind) for kind in KINDS] == [144.0, 72.0, 72.0, 72.0, 72.0, 96.0]


def test_unknown_length_is_an_error():
    endless = TPU.replace("constant(5)", "copy(%other)")
    with pytest.raises(ValueError, match="unknown trip count"):
        collectives(endless, 8)
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("HloModule nothing", 8)


def test_a_scan_that_gathers_its_layers():
    """Five layers divided over 4 of 8 devices, rows over all; one sum at the end."""
    mesh = make_mesh(data=2, fsdp=4)
    place = lambda *axes: NamedSharding(mesh, P(*axes))
    rows, divided = place(("data", "fsdp")), place(None, "fsdp")

    def function(x, layers):
        def body(x, layer):
            whole = jax.lax.with_sharding_constraint(layer, place())
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ whole), rows), None

        return jax.lax.scan(body, x, layers)[0].sum(axis=0)

    compiled = (
        jax.jit(function, in_shardings=(rows, divided), out_shardings=place())
        .lower(jnp.zeros((16, 32)), jnp.zeros((5, 32, 32)))
        .compile()
    )
    sums = by_kind(collectives(compiled.as_text(), 8))
    assert sums["all-gather"] == (5, 5 * 32 * 32 * 4, 5 * 32 * 32 * 4 * 3 / 4)
    assert sums["all-reduce"] == (1, 32 * 4, 2 * 32 * 4 * 7 / 8)
    assert sums["collective-permute"][0] == 0
