"""Measure the errors against PyTorch: `python -m benchmarks.parity`.

Runs the parity tests (torch and transformers installed: the extra `parity`), which
compare with numbers of the authors' own code (tests/goldens) and with transformers
live, and writes the largest error of every block to docs/parity.md.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "parity.md"
TESTS = (
    "tests/models",
    "tests/nn/test_half_precision.py",
    "tests/losses/test_stage1.py",
    "tests/losses/test_stage2.py",
    "tests/generation",
    "tests/convert",
    "tests/inference/test_model.py",
    "tests/inference/test_scoring.py",
    "tests/inference/test_blip_captioner.py",
    "tests/inference/test_clip_scorer.py",
    "tests/evaluation/test_stage1_scorer.py",
)

# Blocks in the order of the page: name, reference, pattern of the comparisons.
NAMED = ("kind", "test", "what")
ORIGINAL, TRANSFORMERS = "the original", "transformers"
BLOCKS = (
    ("EVA-CLIP ViT, final norm", ORIGINAL, r"test_vit.*eva|stage2.*:: image_embeds$"),
    ("CLIP ViT", TRANSFORMERS, r"test_vit.*clip"),
    ("EVA-CLIP ViT at 364 and 490 px", TRANSFORMERS, r"test_other_resolutions"),
    ("SigLIP at three sizes", TRANSFORMERS, r"test_encoders.*transformers\[siglip"),
    ("DINOv2 at three sizes", TRANSFORMERS, r"test_encoders.*rs\[dinov2(_swiglu)?\]"),
    (
        "DINOv2 with registers at three sizes",
        TRANSFORMERS,
        r"test_encoders.*transformers\[dinov2_registers",
    ),
    ("Q-Former, query pass", ORIGINAL, r"query_output$|stage1\.py.*:: image_embeds$"),
    ("Q-Former, text pass", ORIGINAL, r"stage1\.py.*:: text_(embeds|output)$"),
    ("Q-Former, text pass of a BERT", TRANSFORMERS, r"test_bert"),
    ("Q-Former, multimodal pass", ORIGINAL, r"(multimodal_embeds|itm_hidden)$"),
    ("Q-Former, captioning pass and head", ORIGINAL, r"lm_(hidden|logits)$"),
    ("Contrastive projections, cosines", ORIGINAL, r"_proj$|_feats$|itc_score$|sim_"),
    ("Matching head", ORIGINAL, r"itm_logits$"),
    ("Match, features through the API", ORIGINAL, r"test_model.*(match|features)"),
    ("Match, features through the API", TRANSFORMERS, r"test_match_and_features"),
    ("Language projection", ORIGINAL, r"stage2.*:: proj$"),
    ("Language projection", TRANSFORMERS, r"test_equals_huggingface"),
    ("OPT, logits", ORIGINAL, r"stage2\.py.*stage2_opt_a.*:: logits"),
    ("OPT, logits", TRANSFORMERS, r"test_opt.*transformers\[pre_norm"),
    ("OPT-350m's layout, logits", ORIGINAL, r"stage2\.py.*opt350_a.*:: logits"),
    ("OPT-350m's layout, logits", TRANSFORMERS, r"test_opt.*transformers\[post_norm"),
    ("Llama and its relatives: logits", TRANSFORMERS, r"test_llama.*logits_eq"),
    ("The same: loss", TRANSFORMERS, r"values :: .*test_llama.*test_loss"),
    ("The same: gradient", TRANSFORMERS, r"gradients :: .*test_llama.*test_loss"),
    ("T5, encoder", ORIGINAL, r"encoder_last_hidden"),
    ("T5, logits", ORIGINAL, r"stage2\.py.*stage2_t5_a.*:: logits"),
    ("T5, logits", TRANSFORMERS, r"test_t5.*transformers"),
    ("Stage 1, losses", ORIGINAL, r"values :: .*losses/test_stage1.*(losses|ranks)"),
    ("Stage 1, gradients", ORIGINAL, r"gradients :: .*losses/test_stage1"),
    ("Stage 1, losses and weights of five steps", ORIGINAL, r"test_five_steps"),
    ("Stage 2, losses", ORIGINAL, r"values :: .*losses/test_stage2"),
    ("Stage 2, gradients", ORIGINAL, r"gradients :: .*losses/test_stage2"),
    ("Decoding, Q-Former", ORIGINAL, r"goldens_stage1"),
    ("Decoding, OPT, every mode", ORIGINAL, r"goldens_stage2.*stage2_opt_a"),
    ("Decoding, OPT-350m's layout", ORIGINAL, r"goldens_stage2.*opt350"),
    ("Decoding, T5, every mode", ORIGINAL, r"goldens_stage2.*t5"),
    ("Decoding from torch's logits", TRANSFORMERS, r"test_transformers5"),
    ("Decoding, Llama and its relatives", TRANSFORMERS, r"test_llama.*gener"),
    ("Picture to text, Llama", TRANSFORMERS, r"loaded_models.*of_transf.*\[llama"),
    ("Picture to text, OPT", TRANSFORMERS, r"loaded_models.*of_transf.*\[opt"),
    ("Picture to text, T5", TRANSFORMERS, r"loaded_models.*of_transf.*\[t5"),
    ("Scores of texts", TRANSFORMERS, r"values :: .*test_scoring.*equal_transf"),
    (
        "InstructBLIP, queries and projection",
        TRANSFORMERS,
        r"instructblip\.py.*(instruc|projec)tion$",
    ),
    ("InstructBLIP, scores of texts", TRANSFORMERS, r"instructblip.*:: logits$"),
    ("InstructBLIP with Vicuna, loss", TRANSFORMERS, r"instructblip_vic.*:: loss$"),
    ("The same: gradients", TRANSFORMERS, r"gradients :: .*instructblip_vicuna"),
    ("Picture to text, InstructBLIP", TRANSFORMERS, r"instructblip.*test_ids_equal"),
    ("mBLIP, logits and loss", TRANSFORMERS, r"mblip.*:: (logits|loss)$"),
    ("mBLIP, gradients", TRANSFORMERS, r"gradients :: .*mblip"),
    ("Picture to text, mBLIP", TRANSFORMERS, r"mblip.*test_ids_equal"),
    ("MiniGPT-4, scores of texts", TRANSFORMERS, r"minigpt4.*:: logits$"),
    ("Picture to text, MiniGPT-4", TRANSFORMERS, r"minigpt4.*:: ids$"),
    ("BLIP, image encoder", TRANSFORMERS, r"blip_captioner.*:: image encoder$"),
    ("BLIP, text blocks and logits", TRANSFORMERS, r"blip_capt.*:: (block|logits)$"),
    ("BLIP at other image sizes", TRANSFORMERS, r"blip_captioner.*image_size_inter"),
    ("Picture to text, BLIP", TRANSFORMERS, r"blip_captioner.*test_ids_equal"),
    ("CLIP, vectors and logits", TRANSFORMERS, r"clip_scorer.*:: (image|text|logits)"),
)
HEAD = """# Parity with PyTorch

Every block agrees with the PyTorch implementations within small tolerances in float32,
and generated ids are identical. `python -m benchmarks.parity` runs the parity tests and
writes this page.

- "The original": numbers computed by the authors' code with tiny random weights, stored
  in `tests/goldens/`.
- "transformers": version {version}, run in the same test on weights converted by
  `blip2_jax/convert`.
- "Llama and its relatives": Llama with every scaling of the rotary positions, Mistral,
  Qwen2, Qwen3, Granite, Phi-3.
- Tolerances: `1e-5 + 1e-4 |x|` for values, `1e-4 max|g| + 2e-6` for gradients.
- Programs are compiled without optimisation, as in all tests (`tests/conftest.py`).

"""


def main() -> int:
    """Run the tests and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slow", action="store_true", help="run the slow tests too")
    parser.add_argument(
        "--log",
        type=pathlib.Path,
        help="log of tests that were run with BLIP2_JAX_PARITY_LOG=FILE",
    )
    options = parser.parse_args()
    code, lines = (0, read(options.log)) if options.log else run(options.slow)
    page = HEAD.format(version=_version()) + table(lines) + half_table(lines)
    print(page)
    if code == 0:
        PAGE.write_text(page)
    return code


def run(slow: bool) -> tuple[int, list[dict[str, Any]]]:
    """Run the parity tests; returns the exit code and the comparisons."""
    with tempfile.TemporaryDirectory() as directory:
        log = pathlib.Path(directory) / "parity.jsonl"
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", *TESTS]
        command += ["-m", "slow or not slow" if slow else "not slow"]
        environment = os.environ | {"BLIP2_JAX_PARITY_LOG": str(log)}
        code = subprocess.run(command, cwd=ROOT, env=environment).returncode
        return code, read(log)


def read(log: pathlib.Path) -> list[dict[str, Any]]:
    """Read comparisons from a log with one on each line."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def table(lines: list[dict[str, Any]]) -> str:
    """Format a row for every block; a block without a comparison is an error."""
    rows = [
        "| block | against | compared | largest error | share of the tolerance |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for name, against, pattern in BLOCKS:
        matches = [
            line
            for line in lines
            if line["kind"] != "bf16"
            and re.search(pattern, " :: ".join(line[k] for k in NAMED))
        ]
        if not matches:
            raise SystemExit(f"no comparison matches the block {name!r} ({pattern})")
        numbers = sum(line["count"] for line in matches)
        error = max(line["error"] for line in matches)
        if {line["kind"] for line in matches} == {"ids"}:
            cells = f"{numbers:,} ids | {'identical' if error == 0 else 'DIFFERENT'} |"
        else:
            share = max(line["share"] for line in matches if line["kind"] != "ids")
            cells = f"{numbers:,} | {error:.1e} | {share:.0%}"
        rows.append(f"| {name} | {against} | {cells} |")
    return "\n".join(rows) + "\n"


def half_table(lines: list[dict[str, Any]]) -> str:
    """Format the errors of bfloat16, ours and torch's, against torch in fp32."""
    rows = [
        "",
        "## bfloat16",
        "",
        "Largest error of a logit against torch in float32, relative to the "
        "largest logit; next to it the error of torch in bfloat16.",
        "",
        "| model | blip2_jax | torch |",
        "| --- | ---: | ---: |",
    ]
    errors: dict[str, dict[str, float]] = {}
    for line in lines:
        if line["kind"] == "bf16":
            name = line["test"].split("[")[1].rstrip("]")
            errors.setdefault(name, {})[line["what"].split(",")[0]] = line["share"]
    for name, shares in sorted(errors.items()):
        rows.append(f"| {name} | {shares['ours']:.2%} | {shares['torch']:.2%} |")
    return "\n".join(rows) + "\n"


def _version() -> str:
    import transformers

    return transformers.__version__


if __name__ == "__main__":
    sys.exit(main())
