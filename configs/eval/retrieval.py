"""blip2-jax evaluate --config eval/retrieval:coco,vitg

Retrieval both ways, the paper's tables 5 and 6: DATA is coco (5,000 images) or
flickr30k (1,000), MODEL vitL, vitg (both fine-tuned on COCO) or, on coco, a run of
vitg_without_itg.
Paths as in `evaluation/paper.py`; behind the row, `data=DIR`, `weights=DIR` and
`runs=DIR` name others.
"""

from ml_collections import ConfigDict

from blip2_jax.paper import paper_tables


def get_config(row: str = "coco,vitg") -> ConfigDict:
    """The evaluation's configuration."""
    return paper_tables.retrieval(paper_tables.read_row("retrieval", row))
