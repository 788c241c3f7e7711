"""blip2-jax evaluate --config eval/vqa_finetuned:vqav2_test,opt6.7b

Fine-tuned visual question answering (table 4 of the paper). The argument is DATA,MODEL:
DATA is vqav2_testdev or vqav2_test, MODEL opt2.7b, opt6.7b or flant5xl, a run of your
own: these weights were not released. Neither data set has answers; the evaluation
writes the file for the benchmark's server.

The images, annotations and weights are expected as in
`blip2_jax/paper/paper_tables.py`; `data=DIR`, `weights=DIR` and `runs=DIR` after MODEL
change the directories.
"""

from ml_collections import ConfigDict

from blip2_jax.paper import paper_tables


def get_config(row: str = "vqav2_test,opt6.7b") -> ConfigDict:
    """Build the configuration; `row` is "DATA,MODEL" and changed directories."""
    return paper_tables.vqa_finetuned(paper_tables.parse_row("vqa_finetuned", row))
