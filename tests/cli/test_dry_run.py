"""`--dry_run` shows what a model would be fed."""

import ml_collections
import numpy as np
import pytest
from PIL import Image

from blip2_jax.cli.dry_run import dry_run
from tests.support.generated_data import bert_directory, language_directory, tars_spec


@pytest.mark.parametrize(
    "task, golden, asks",
    [
        ("stage1", "", False),
        ("stage2", "stage2_opt_a", False),
        ("stage2", "stage2_opt_a", True),
    ],
)
def test_five_samples_are_drawn_and_told(tmp_path, capsys, task, golden, asks):
    directory = language_directory(tmp_path / "opt", golden or "stage2_t5_a")
    data = {
        "train": (tars_spec(tmp_path),),
        "image": {"size": 32},
        "tokenizer": {
            "qformer": bert_directory(tmp_path / "bert"),
            "language_model": directory,
        },
        "workers": 8,
    }
    config = ml_collections.ConfigDict(
        {"task": task, "seed": 0, "data": data, "model": {"question_in_qformer": asks}}
    ).lock()
    dry_run(config, tmp_path / "samples.png")
    told = capsys.readouterr().out
    assert told.count("text_ids: ") == 5 and "5. 0000" in told
    assert ("targets: " in told) == (task == "stage2")
    assert ("question_ids: " in told) == asks
    drawn = np.asarray(Image.open(tmp_path / "samples.png"))
    assert drawn.shape[1] > 1000 and drawn.std() > 10
