"""blip2-jax evaluate --config eval/captioning:nocaps,flant5xl

Captions of models fine-tuned on COCO (table 3 of the paper). The argument is
DATA,MODEL: DATA is nocaps (in, near, out of domain and all) or coco (the 5,000 test
images of Karpathy's split), MODEL opt2.7b, opt6.7b or flant5xl.

The images, annotations and weights are expected as in
`blip2_jax/paper/paper_tables.py`; `data=DIR`, `weights=DIR` and `runs=DIR` after MODEL
change the directories.
"""

from ml_collections import ConfigDict

from blip2_jax.paper import paper_tables


def get_config(row: str = "nocaps,flant5xl") -> ConfigDict:
    """Build the configuration; `row` is "DATA,MODEL" and changed directories."""
    return paper_tables.captioning(paper_tables.parse_row("captioning", row))
