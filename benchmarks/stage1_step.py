"""Time steps of stage 1: `python -m benchmarks.stage1_step --lavis PATH`.

Beside the original: the Q-Former in its real size, all three losses, forward, backward
and AdamW, fp32, a batch of 8 texts of 32 tokens: on precomputed features of a ViT-g
(257 x 1408), and with a frozen ViT-S in the step. Without dropout both see the same
weights and negatives and must report the same losses; the speed is compared with
dropout 0.1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks import harness, weight_peers
from blip2_jax.models import presets
from blip2_jax.models.sizes import FeaturesConfig, QFormerConfig, ViTConfig

ROWS, TEXT = 8, 32
VISIONS: dict[str, Any] = {
    "features": FeaturesConfig(257, 1408),
    "vit_s": ViTConfig(width=384, depth=12, heads=6, mlp_dim=1536),
}
TINY_VISIONS: dict[str, Any] = {
    "features": FeaturesConfig(5, 24),
    "vit_s": ViTConfig(24, 2, 2, 48, image_size=28),
}
TINY_QFORMER = QFormerConfig(
    32, 2, 2, 64, num_queries=4, vocab_size=120, max_positions=48, projection_dim=16
)
TITLES = {
    "features": "Stage 1, real-size Q-Former on features of a ViT-g",
    "vit_s": "Stage 1, real-size Q-Former, a frozen ViT-S in the step",
}
HEAD = ("", "s a step", "ratio", "GFLOP/s", "of GEMM", "peak GB")
SAME_STEPS, PLAIN_ROUNDS = 3, 3


def main() -> int:
    """Time one image encoder after the other."""
    parser = harness.arguments(__doc__ or "", rounds=5)
    parser.add_argument("--vision", choices=VISIONS, action="append")
    options = parser.parse_args()
    for name in options.vision or VISIONS:
        batch_settings = {"rows": ROWS, "text": TEXT}
        sizes = functools.partial(sizes_of, name, options.tiny)
        versions, body = steps(options, sizes, batch_settings)
        about = (
            f"{versions}; fp32, batch {ROWS}, {TEXT} tokens, {options.threads} threads."
        )
        harness.report(options, TITLES[name], about, body)
    return 0


def sizes_of(name: str, tiny: bool, dropout: float) -> dict[str, Any]:
    """Return the sizes of the model as JSON values."""
    qformer = TINY_QFORMER if tiny else presets.QFORMER_BASE
    vision = (TINY_VISIONS if tiny else VISIONS)[name]
    qformer = dataclasses.replace(qformer, dropout=dropout)
    return presets.to_plain(presets.Blip2Config(vision, qformer))


def steps(
    options: Any,
    sizes_with: Callable[[float], dict[str, Any]],
    batch_settings: dict[str, Any],
    peers: Sequence[str] = (),
) -> tuple[str, str]:
    """Compare losses without dropout, and time steps without and with it.

    Args:
      options: parsed command line.
      sizes_with: function from the dropout rate to the sizes of the model.
      batch_settings: further settings of the contestants.
      peers: names of `weight_peers` that are started in addition to the original.

    Returns:
      Versions, and the tables.
    """
    rows, lines, versions = [], [], ""
    for dropout in (0.0, 0.1):
        settings = {"sizes": sizes_with(dropout), **batch_settings}
        if not dropout and (options.lavis or peers):
            # In other processes, because replaying negatives compiles another program.
            with started(options, settings, peers) as workers:
                lines.append(same_losses(*workers))
        with started(options, settings, peers) as workers:
            versions = ", ".join(worker.ask("versions") for worker in workers)
            rounds = options.rounds if dropout else min(options.rounds, PLAIN_ROUNDS)
            rows += measure(workers, rounds, dropout)
    return versions, "\n".join([harness.table(HEAD, rows), *lines])


@contextlib.contextmanager
def started(
    options: Any, settings: dict[str, Any], peers: Sequence[str] = ()
) -> Iterator[list[harness.Worker]]:
    """Start the contestants, ours first and the original last; end them at the end."""
    kind = "training"
    with contextlib.ExitStack() as stack:
        pair = [stack.enter_context(w) for w in harness.pair(options, kind, settings)]
        ours, *original = pair
        more = weight_peers.start(peers, options, kind, settings, ours, stack)
        yield [ours, *more, *original]


def same_losses(ours: harness.Worker, *peers: harness.Worker) -> str:
    """Compare the losses of the first steps with equal weights and negatives."""
    steps = []
    for _ in range(SAME_STEPS):
        results = [peer.ask("compare") for peer in peers]
        loss = ours.ask("compare", negatives=results[-1]["negatives"])
        theirs = ", ".join(f"{result['loss']:.5f}" for result in results)
        steps.append(f"{loss:.5f} ({theirs})")
    names = ", ".join(peer.name for peer in peers)
    head = f"Losses of the first steps without dropout, ours ({names})"
    return f"{head}: {', '.join(steps)}."


def measure(
    workers: list[harness.Worker], rounds: int, dropout: float
) -> list[list[str]]:
    """Return a table row for every contestant."""
    times = harness.take_turns(workers, "step", rounds)
    gemm, flops = workers[0].ask("gemm"), workers[0].ask("gigaflops")
    rows = []
    for worker in workers:
        taken = times[worker.name]
        speed, rate = f"{times[workers[-1].name] / taken:.2f}", ["", ""]
        if worker is workers[0]:
            rate = [f"{flops / taken:.0f}", f"{flops / taken / gemm:.0%}"]
        name = f"{worker.name}, dropout {dropout:g}"
        rows.append([name, f"{taken:.2f}", speed, *rate, f"{worker.peak():.2f}"])
    return rows


if __name__ == "__main__":
    sys.exit(main())
