"""blip2-jax evaluate --config eval/retrieval:coco,vitg

Retrieval in both directions (tables 5 and 6 of the paper). The argument is DATA,MODEL:
DATA is coco (5,000 images) or flickr30k (1,000 images), MODEL vitL or vitg, fine-tuned
on COCO, or, on coco, vitg_without_itg, a run of your own.

The images, annotations and weights are expected as in
`blip2_jax/paper/paper_tables.py`; `data=DIR`, `weights=DIR` and `runs=DIR` after MODEL
change the directories.
"""

from ml_collections import ConfigDict

from blip2_jax.paper import paper_tables


def get_config(row: str = "coco,vitg") -> ConfigDict:
    """Build the configuration; `row` is "DATA,MODEL" and changed directories."""
    return paper_tables.retrieval(paper_tables.parse_row("retrieval", row))
