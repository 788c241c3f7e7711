"""blip2-jax evaluate --config eval/vqa_zeroshot:vqav2_val,opt2.7b

Zero-shot visual question answering (table 2 of the paper). The argument is DATA,MODEL:
DATA is vqav2_val, vqav2_testdev (without answers: writes the file for the server),
okvqa or gqa, MODEL opt2.7b_vitL, opt2.7b, opt6.7b, flant5xl_vitL, flant5xl or
flant5xxl. The authors released no opt2.7b_vitL: give a run of your own by `--model`.

The images, annotations and weights are expected as in
`blip2_jax/paper/paper_tables.py`; `data=DIR`, `weights=DIR` and `runs=DIR` after MODEL
change the directories.
"""

from ml_collections import ConfigDict

from blip2_jax.paper import paper_tables


def get_config(row: str = "vqav2_val,opt2.7b") -> ConfigDict:
    """Build the configuration; `row` is "DATA,MODEL" and changed directories."""
    return paper_tables.vqa_zeroshot(paper_tables.parse_row("vqa_zeroshot", row))
