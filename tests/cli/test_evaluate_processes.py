"""One or two processes and batches of 7 or 64 give the same scores and files."""

import json

import pytest
from PIL import Image

from blip2_jax.data.sources.registry import build_source
from blip2_jax.evaluation.examples import read_examples
from tests.support.evaluate_all_tasks import TASKS
from tests.support.processes import SUPPORT, run_together
from tests.support.tiny_runs import make_run

SCRIPT = SUPPORT / "evaluate_all_tasks.py"
IMAGES, BROKEN, SIZES = 13, 5, (7, 64)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Directories of the results of one process and of two."""
    place = tmp_path_factory.mktemp("evaluation")
    make_run(place / "stage1", "stage1")
    make_run(place / "stage2", "stage2", factor=30.0)
    spec = {"kind": "shapes", "split": "validation", "size": 14, "texts": "both"}
    scenes = build_source(spec)
    with (place / "all.jsonl").open("w") as file:
        for index in range(IMAGES):
            record, name = scenes.record(index), f"{index}.png"
            if index == BROKEN:
                (place / name).write_bytes(b"no image")
            else:
                Image.fromarray(scenes.load_image(index)).save(place / name)
            for number, question in enumerate(record.questions[: 1 + index % 3]):
                row = {"image": name, "caption": list(record.captions[number:][:1])}
                row |= {"question": question.text, "question_id": 10 * index + number}
                row |= {"answer": list(question.answers) * 10, "image_id": index}
                file.write(json.dumps(row) + "\n")
    for count, name in ((1, "one"), (2, "two")):
        run_together(SCRIPT, place, place / name, *SIZES, count=count)
    return place / "one", place / "two"


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_nothing_depends_on_processes_or_batches(outputs, task):
    results = []
    for folder in outputs:
        for size in SIZES:
            path = folder / f"{task}_{size}.json"
            record = json.loads(path.read_text())
            fields = {
                name: record[name]
                for name in (
                    "scores",
                    "intervals",
                    "broken",
                    "digests",
                    "records",
                    "examples",
                )
            }
            predictions = path.with_suffix(".predictions.json")
            examples = read_examples(path.with_suffix(".examples.jsonl"))
            file = predictions.read_bytes() if predictions.exists() else None
            results.append((fields, examples, file))
    assert all(result == results[0] for result in results[1:])
    fields, examples, _ = results[0]
    assert fields["broken"] == {"not an image": 1}
    if task != "retrieval":
        assert len({example["said"] for example in examples}) > 1
    if task == "vqa":
        ids = [example["id"] for example in examples]
        expected = [10 * i + n for i in range(IMAGES) for n in range(1 + i % 3)]
        assert ids == [id_ for id_ in expected if id_ // 10 != BROKEN]
    if task == "captioning":
        ids = [example["id"] for example in examples]
        assert ids == [index for index in range(IMAGES) if index != BROKEN]


@pytest.mark.slow
def test_only_the_first_process_writes_and_no_cache_remains(outputs):
    names = {path.name for path in outputs[0].iterdir()}
    assert names == {path.name for path in outputs[1].iterdir()}
    assert not [name for name in names if "rerank" in name]
