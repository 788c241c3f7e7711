"""`--dry_run` shows the samples that a model would read."""

import ml_collections
import numpy as np
import pytest
from PIL import Image

from blip2_jax.cli.dry_run import dry_run
from tests.support.generated_data import bert_directory, language_directory, tars_spec


@pytest.mark.parametrize(
    "task, golden, question_in_qformer",
    [
        ("stage1", "", False),
        ("stage2", "stage2_opt_a", False),
        ("stage2", "stage2_opt_a", True),
    ],
)
def test_five_samples_are_printed_and_drawn(
    tmp_path, capsys, task, golden, question_in_qformer
):
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
        {
            "task": task,
            "seed": 0,
            "data": data,
            "model": {"question_in_qformer": question_in_qformer},
        }
    ).lock()
    dry_run(config, tmp_path / "samples.png")
    output = capsys.readouterr().out
    assert output.count("text_ids: ") == 5 and "5. 0000" in output
    assert ("targets: " in output) == (task == "stage2")
    assert ("question_ids: " in output) == question_in_qformer
    image = np.asarray(Image.open(tmp_path / "samples.png"))
    assert image.shape[1] > 1000 and image.std() > 10
