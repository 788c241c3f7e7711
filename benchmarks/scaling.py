"""Write the tables of docs/scaling.md: `python -m benchmarks.scaling --workdir DIR`.

Plans the paper's configurations on TPU slices, one after the other, each by
`launch/plan.py` in a process of its own, and writes the results into the page. A
case whose numbers are in DIR already is not planned again, so that the command can be
stopped and continued; `--only NAME` plans some alone, and the others' rows stay. Needs
`pip install 'jax[tpu]'`, no TPU, up to 10 GB of memory, and some minutes of one core a
case.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scaling.md"
REMAT = "none"  # of all cases
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Case:
    """One plan: a configuration, a slice, a batch and a mesh."""

    config: str
    topology: str
    batch: int
    fsdp: int = 1
    tensor: int = 1

    @property
    def name(self) -> str:
        """Return the name of the file with the numbers."""
        size = self.topology.replace(":", "-")
        mesh = f"f{self.fsdp}t{self.tensor}"
        return f"{self.config}_{size}_{self.batch}_{mesh}_{REMAT}"

    def is_told_by(self, line: str) -> bool:
        """Return whether a line of the table is about this case."""
        cells = [cell.strip() for cell in line.split("|")]
        mesh = f"x{self.fsdp}x{self.tensor}"
        expected = [self.config, self.topology, str(self.batch)]
        return cells[1:4] == expected and cells[4].endswith(mesh)

    def command(self, file: pathlib.Path) -> list[str]:
        """Return the command line that plans the case."""
        return [
            "launch/plan.py",
            "--config",
            f"configs/{self.config}.py",
            f"--config.batch_size={self.batch}",
            f"--config.mesh.fsdp={self.fsdp}",
            f"--config.mesh.tensor={self.tensor}",
            f"--config.model.remat={REMAT}",
            "--topology",
            self.topology,
            "--json",
            str(file),
        ]


# In order of importance.
PAPER = (
    Case("stage1_vitg", "v5e:16x16", 1792),
    Case("stage2_flant5xxl", "v5e:16x16", 1536, fsdp=16),
    Case("stage2_flant5xxl", "v5e:16x16", 1536, tensor=4),
    Case("stage2_flant5xxl", "v5e:16x16", 1536, tensor=8),
    Case("stage2_flant5xxl", "v5e:16x16", 1536, fsdp=8, tensor=2),
    Case("stage2_flant5xxl", "v5e:16x16", 1536, fsdp=4, tensor=4),
    Case("stage2_opt2_7b", "v5e:16x16", 1792),
    Case("stage2_opt6_7b", "v5e:16x16", 1792, fsdp=16),
    Case("stage2_opt6_7b", "v5e:16x16", 1792, fsdp=4, tensor=4),
    Case("stage2_opt6_7b", "v5e:16x16", 1792, tensor=4),
    Case("stage2_flant5xl", "v5e:16x16", 1536),
    Case("stage1_vitl", "v5e:16x16", 2304),
    Case("stage2_flant5xxl", "v5p:4x4x4", 1536),
    Case("stage2_opt2_7b", "v5e:2x4", 128, fsdp=8),
    Case("stage2_flant5xxl", "v5e:2x4", 64, fsdp=8),
    Case("stage1_vitg", "v5p:4x4x4", 1664),
    Case("stage1_vitl", "v5p:4x4x4", 2304),
    Case("stage1_vitg", "v5e:2x4", 192),
    Case("stage2_opt6_7b", "v5e:2x4", 64, fsdp=8),
    Case("stage2_flant5xl", "v5e:2x4", 128, fsdp=8),
    Case("stage2_opt2_7b", "v5p:4x4x4", 1920),
    Case("stage2_opt6_7b", "v5p:4x4x4", 1920),
    Case("stage2_flant5xl", "v5p:4x4x4", 1536),
)
# The same number of images for each chip on more and more chips.
SLICES = {8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CURVE = (
    *(Case("stage1_vitg", f"v5e:{shape}", 7 * n) for n, shape in SLICES.items()),
    *(
        Case("stage2_opt2_7b", f"v5e:{shape}", 8 * n, fsdp=8)
        for n, shape in SLICES.items()
    ),
)


def main() -> None:
    """Plan the missing cases and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument(
        "--only", default="", help="plan only cases with this text in their name"
    )
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    for case in (*PAPER, *CURVE):
        file = options.workdir / f"{case.name}.json"
        if options.only in case.name and not file.exists():
            print(f"== {case.name}", flush=True)
            subprocess.run([sys.executable, *case.command(file)], cwd=ROOT)
            write_page(options.workdir)
    write_page(options.workdir)


def write_page(workdir: pathlib.Path) -> None:
    """Write the tables between the page's marks; rows without a new plan stay."""
    text = PAGE.read_text()
    for mark, cases in (("paper", PAPER), ("curve", CURVE)):
        before, rest = text.split(f"<!-- {mark} -->\n")
        old, after = rest.split("<!-- end -->", 1)
        lines = [HEADER, RULE]
        for case in cases:
            file = workdir / f"{case.name}.json"
            if file.exists():
                lines.append(row(case, json.loads(file.read_text())[0]))
            else:
                lines += filter(case.is_told_by, old.splitlines())
        body = "\n".join(lines)
        text = f"{before}<!-- {mark} -->\n{body}\n<!-- end -->{after}"
    PAGE.write_text(text)


HEADER = (
    "| config | slice | batch | data x fsdp x tensor | fits | frozen | trained + "
    "optimizer | temporaries | total, GiB | GF/image | sent, GiB/step | products / HBM "
    "/ links, ms | MFU of the roofline | images/s/chip | MFU | days |"
)
RULE = "|" + "---|" * HEADER.count(" | ") + "---|"


def row(case: Case, plan: dict[str, Any]) -> str:
    """Format a line of the table: times and MFU of the roofline, rates at 40 % MFU."""
    memory, guess = plan["memory"], plan["estimate"]
    cells = [
        case.config,
        plan["topology"],
        str(plan["batch_size"]),
        "x".join(map(str, plan["mesh"].values())),
        "yes" if plan["fits"] else "no",
        f"{memory['frozen'] / GIB:.2f}",
        f"{(memory['trainable'] + memory['optimizer']) / GIB:.2f}",
    ]
    if guess is None:
        refusal = plan["refusal"]
        needed = refusal["needed"]
        cells += ["-", "?" if needed is None else f"{needed / GIB:.1f}"]
        cells += [f"{plan['flops_per_image'] / 1e9:.0f}", *["-"] * 6]
        return "| " + " | ".join(cells) + " |"
    sent = sum(kind["sent_bytes"] for kind in plan["collectives_by_kind"].values())
    times = (guess["products"], guess["memory"], guess["links"])
    cells += [
        f"{memory['temporaries'] / GIB:.2f}",
        f"{memory['total'] / GIB:.2f}",
        f"{plan['flops_per_image'] / 1e9:.0f}",
        f"{sent / GIB:.2f}",
        " / ".join(f"{1e3 * seconds:.0f}" for seconds in times),
        "-" if guess["mfu"] is None else f"{roofline_mfu(guess):.2f}",
        f"{guess['images_per_second_per_chip']:.1f}",
        "-" if guess["mfu"] is None else f"{guess['mfu']:.2f}",
        f"{guess['days']:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def roofline_mfu(guess: dict[str, Any]) -> float:
    """Return the MFU of a step that takes as long as its roofline."""
    return guess["mfu"] * guess["step"] / guess["roofline"]


if __name__ == "__main__":
    main()
