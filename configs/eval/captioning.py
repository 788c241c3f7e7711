"""blip2-jax evaluate --config eval/captioning:nocaps,flant5xl

Captions of models fine-tuned on COCO, the paper's table 3: DATA is nocaps (in, near,
out of domain and all) or coco (the 5,000 test images of Karpathy's split), MODEL
opt2.7b, opt6.7b or flant5xl.
Paths as in `evaluation/paper.py`; behind the row, `data=DIR`, `weights=DIR` and
`runs=DIR` name others.
"""

from ml_collections import ConfigDict

from blip2_jax.paper import paper_tables


def get_config(row: str = "nocaps,flant5xl") -> ConfigDict:
    """The evaluation's configuration."""
    return paper_tables.captioning(paper_tables.read_row("captioning", row))
