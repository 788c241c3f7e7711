"""blip2-jax evaluate --config eval/vqa_zeroshot:vqav2_val,opt2.7b

Zero-shot visual question answering, a row and a column of the paper's table 2: DATA is
vqav2_val, vqav2_testdev (no answers: a file for the server), okvqa or gqa, MODEL one of
opt2.7b_vitL, opt2.7b, opt6.7b, flant5xl_vitL, flant5xl, flant5xxl. The authors released
no opt2.7b_vitL: give a run of your own as `--model`.
Paths as in `evaluation/paper.py`; behind the row, `data=DIR`, `weights=DIR` and
`runs=DIR` name others.
"""

from ml_collections import ConfigDict

from blip2_jax.paper import paper_tables


def get_config(row: str = "vqav2_val,opt2.7b") -> ConfigDict:
    """The evaluation's configuration."""
    return paper_tables.vqa_zeroshot(paper_tables.read_row("vqa_zeroshot", row))
