"""Time greedy and beam-5 captions: `python -m benchmarks.generation`.

A language model of OPT-125m's size behind the real-size Q-Former, random weights, fp32,
batch 4, 30 new tokens (none may end earlier) behind a prompt of four, from features to
ids. Peers: the original (`--lavis`) under transformers 4.33, and `generate` of current
transformers' `Blip2ForConditionalGeneration` (`--torch_python`) and of KerasHub's
`BLIP2CausalLM` (`--keras_python`). Greedy decoding is also measured against the
machine's memory: bytes a token = weights of the language model and its cache, each read
once.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from benchmarks import harness, weight_peers
from benchmarks.stage1_step import TINY_QFORMER, TINY_VISIONS, VISIONS
from benchmarks.stage2_step import LANGUAGE, TINY_LANGUAGE
from blip2_jax.models import presets

ROWS, TOKENS, PROMPT = 4, 30, (2, 20, 30, 40)
BEAMS = {"greedy": 1, "beam 5": 5}
HEAD = ("", "s", "tokens/s", "ratio", "ids as ours", "peak GB")
TITLE = "Generation, OPT-125m's size"


def main() -> int:
    """Time greedy decoding, then beam search."""
    parser = harness.arguments(__doc__ or "", rounds=5)
    parser.add_argument("--mode", choices=BEAMS, action="append")
    options = parser.parse_args()
    rows, lines, versions = [], [], ""
    for mode in options.mode or BEAMS:
        with contextlib.ExitStack() as stack:
            workers = contestants(options, BEAMS[mode], stack)
            versions = ", ".join(worker.ask("versions") for worker in workers)
            rows += measure(workers, options.rounds, mode)
            if mode == "greedy":
                lines.append(of_bandwidth(workers[0], options.rounds))
    about = (
        f"{versions}; fp32, batch {ROWS}, {TOKENS} new tokens, "
        f"{options.threads} threads. "
        "The ratio is to ours."
    )
    body = "\n".join([harness.table(HEAD, rows), *lines])
    harness.report(options, TITLE, about, body)
    return 0


def contestants(
    options: Any, beams: int, stack: contextlib.ExitStack
) -> list[harness.Worker]:
    """Start our worker and the peers whose interpreters are given."""
    tiny = options.tiny
    config = presets.Blip2Config(
        (TINY_VISIONS if tiny else VISIONS)["features"],
        TINY_QFORMER if tiny else presets.QFORMER_BASE,
        (TINY_LANGUAGE if tiny else LANGUAGE)["opt"],
    )
    settings = {
        "sizes": presets.to_plain(config),
        "rows": ROWS,
        "prompt": PROMPT,
        "beams": beams,
        "tokens": TOKENS,
    }
    kind = "generation"
    pair = [stack.enter_context(w) for w in harness.pair(options, kind, settings)]
    names = weight_peers.given(options)
    return pair + weight_peers.start(names, options, kind, settings, pair[0], stack)


def measure(workers: list[harness.Worker], rounds: int, mode: str) -> list[list[str]]:
    """Return a table row for every contestant."""
    times = harness.take_turns(workers, "generate", rounds)
    written = {worker.name: worker.ask("ids") for worker in workers}
    ours = workers[0].name
    rows = []
    for worker in workers:
        taken = times[worker.name]
        same = sum(
            a == b for a, b in zip(written[worker.name], written[ours], strict=True)
        )
        rows.append(
            [
                f"{worker.name}, {mode}",
                f"{taken:.2f}",
                f"{ROWS * TOKENS / taken:.0f}",
                f"{taken / times[ours]:.2f}",
                f"{same} of {ROWS}",
                f"{worker.peak():.2f}",
            ]
        )
    return rows


def of_bandwidth(ours: harness.Worker, rounds: int) -> str:
    """Report the share of the memory bandwidth that greedy decoding uses."""
    times = harness.take_turns([ours], "decoding", rounds)
    token = times[ours.name] / (TOKENS - 1)
    size, most = ours.ask("gigabytes"), ours.ask("bandwidth")
    rate = size / token
    return (
        f"Greedy decoding alone: {1e3 * token:.1f} ms a token, {size:.3f} GB a token, "
        f"{rate:.1f} GB/s, {rate / most:.0%} of the {most:.1f} GB/s of a large matrix "
        "times a vector."
    )


if __name__ == "__main__":
    sys.exit(main())
