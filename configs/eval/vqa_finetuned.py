"""blip2-jax evaluate --config eval/vqa_finetuned:vqav2_test,opt6.7b

Fine-tuned visual question answering, the paper's table 4: DATA is vqav2_testdev or
vqav2_test (both without answers: a file for the server), MODEL a run of the fine-tune
behind opt2.7b, opt6.7b or flant5xl. No weights of it were released.
Paths as in `evaluation/paper.py`; behind the row, `data=DIR`, `weights=DIR` and
`runs=DIR` name others.
"""

from ml_collections import ConfigDict

from blip2_jax.paper import paper_tables


def get_config(row: str = "vqav2_test,opt6.7b") -> ConfigDict:
    """The evaluation's configuration."""
    return paper_tables.vqa_finetuned(paper_tables.read_row("vqa_finetuned", row))
