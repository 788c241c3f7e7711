"""Time steps of the released sizes on a GPU, in bfloat16, against torch.

    python -m benchmarks.gpu --lavis PATH --lavis_python PYTHON --torch_python PYTHON
        [--model stage1] [--profile DIR]

ViT-g alone, forward; stage 1 with ViT-g in the step, beside the original (`--lavis`);
stage 2 with OPT-2.7B and FlanT5-XL beside transformers'
`Blip2ForConditionalGeneration` (`--torch_python`).
Ours twice: attention by `auto` (cuDNN's in the image tower), and by XLA. Torch runs
under autocast with SDPA and a fused AdamW. `--tiny --device cpu` runs everywhere,
without cuDNN, and knows no peak, so no MFU. With `--profile` DIR gets what the device
did in three steps of ours, for TensorBoard.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from benchmarks import harness
from benchmarks.stage1_step import TINY_QFORMER, TINY_VISIONS
from benchmarks.stage2_step import TINY_LANGUAGE
from blip2_jax.models import presets

# "lengths": of a text, and of a decoder's target
MODELS: dict[str, dict[str, Any]] = {
    "tower": {"preset": "pretrain", "rows": 64, "lengths": {}},
    "stage1": {"preset": "pretrain", "rows": 64, "lengths": {"text": 32, "target": 0}},
    "opt": {
        "preset": "pretrain_opt2.7b",
        "rows": 32,
        "lengths": {"text": 24, "target": 0},
    },
    "t5": {
        "preset": "pretrain_flant5xl",
        "rows": 32,
        "lengths": {"text": 12, "target": 12},
    },
}
OURS = "ours"  # how the names of our rows begin
HEAD = ("", "images/s", "ratio", "MFU", "of executed FLOPs", "device GB")


def main() -> int:
    """Time one model after the other."""
    options = arguments()
    for name in options.model or MODELS:
        entry = MODELS[name]
        rows = options.rows or (2 if options.tiny else entry["rows"])
        batch_settings = {"rows": rows, **entry["lengths"]}
        title = f"On a GPU, {entry['preset']}" + ", its tower" * (name == "tower")
        with contextlib.ExitStack() as stack:
            workers = [
                stack.enter_context(worker)
                for worker in contestants(options, name, batch_settings)
            ]
            about, table = measure(workers, options.rounds, batch_settings)
            about = f"{about}; bfloat16, batch {rows}."
            harness.report(options, title, about, table)
            for worker in filter(is_ours, workers if options.profile else []):
                kind = worker.name.split()[-1]
                worker.ask("profile", directory=f"{options.profile}/{name}-{kind}")
    return 0


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = harness.arguments(__doc__ or "", rounds=10)
    add = parser.add_argument
    add("--model", choices=MODELS, action="append")
    add("--rows", type=int, default=0, help="of a batch")
    add("--attention", choices=("auto", "cudnn", "xla"), action="append")
    add("--profile", default="", help="directory of profiles of ours")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="of ours and torch")
    options = parser.parse_args()
    on_cpu = options.device == "cpu"
    if on_cpu and "cudnn" in (options.attention or ()):
        parser.error("--attention cudnn needs a GPU: not with --device cpu")
    options.attention = options.attention or (("xla",) if on_cpu else ("auto", "xla"))
    return options


def measure(
    workers: list[harness.Worker], rounds: int, batch_settings: dict[str, int]
) -> tuple[str, str]:
    """Return versions and devices, and the table."""
    about = ", ".join(worker.ask("versions") for worker in workers)
    print("all models are built", file=sys.stderr)
    times = harness.take_turns(workers, "step", rounds)
    lengths = {
        name: length for name, length in batch_settings.items() if name != "rows"
    }
    fixed, executed, peak = workers[0].ask("counted", **lengths)
    rows = []
    for worker in workers:
        taken = times[worker.name]
        rows.append(
            [
                worker.name,
                f"{batch_settings['rows'] / taken:.1f}",
                f"{times[workers[-1].name] / taken:.2f}",
                share(fixed * batch_settings["rows"] / taken, peak),
                # what torch executes is not counted
                share(executed / taken, peak) if is_ours(worker) else "",
                f"{worker.ask('device_peak'):.1f}",
            ]
        )
    return about, harness.table(HEAD, rows)


def share(rate: float, peak: float | None) -> str:
    """Format FLOP/s as a share of the device's peak; "-" if the peak is unknown."""
    return "-" if peak is None else f"{rate / peak:.1%}"


def is_ours(worker: harness.Worker) -> bool:
    """Return whether a worker is ours, not a peer."""
    return worker.name.startswith(OURS)


def contestants(
    options: Any, name: str, batch_settings: dict[str, int]
) -> list[harness.Worker]:
    """Start our workers, one for each attention, and the peer of this model if any."""
    sizes = presets.to_plain(tiny(name) if options.tiny else preset(name))
    settings = {"sizes": sizes, **batch_settings, "precision": "bfloat16"}
    device = {"device": options.device}
    kind, more = ("tower", {}) if name == "tower" else ("training", {"drawn": True})
    workers = [
        harness.Worker(
            f"{OURS}, attention by {attention}",
            sys.executable,
            "ours",
            kind,
            settings | more | {"attention": attention},
            options.threads,
            options.device,
        )
        for attention in options.attention
    ]
    if name == "stage1":
        return workers + harness.original(options, "training", settings, device)
    if options.torch_python and name != "tower":
        workers.append(
            harness.Worker(
                "transformers",
                options.torch_python,
                "transformers_peer",
                "training",
                {"sizes": sizes, **batch_settings, **device},
                options.threads,
            )
        )
    return workers


def preset(name: str) -> presets.Blip2Config:
    """Return the sizes of the released model."""
    return presets.preset(MODELS[name]["preset"])


def tiny(name: str) -> presets.Blip2Config:
    """Return a tiny model of the same parts."""
    return presets.Blip2Config(
        TINY_VISIONS["vit_s"], TINY_QFORMER, TINY_LANGUAGE.get(name)
    )


if __name__ == "__main__":
    sys.exit(main())
