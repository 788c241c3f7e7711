"""One process or two, batches of 7 or 64: the same scores and result files."""

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
def found(tmp_path_factory):
    """Directories of results: of one process, and of two."""
    place = tmp_path_factory.mktemp("evaluation")
    make_run(place / "stage1", "stage1")
    make_run(place / "stage2", "stage2", factor=30.0)
    spec = {"kind": "shapes", "split": "validation", "size": 14, "texts": "both"}
    scenes = build_source(spec)
    with (place / "all.jsonl").open("w") as file:
        for index in range(IMAGES):
            record, name = scenes.record(index), f"{index}.png"
            if index == BROKEN:
                (place / name).write_bytes(b"no picture")
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
def test_nothing_depends_on_processes_or_batches(found, task):
    results = []
    for folder in found:
        for size in SIZES:
            path = folder / f"{task}_{size}.json"
            record = json.loads(path.read_text())
            kept = {
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
            results.append((kept, examples, file))
    assert all(result == results[0] for result in results[1:])
    kept, examples, _ = results[0]
    assert kept["broken"] == {"not an image": 1}
    if task != "retrieval":
        assert len({example["said"] for example in examples}) > 1
    if task == "vqa":
        ids = [example["id"] for example in examples]
        asked = [10 * i + n for i in range(IMAGES) for n in range(1 + i % 3)]
        assert ids == [each for each in asked if each // 10 != BROKEN]
    if task == "captioning":
        ids = [example["id"] for example in examples]
        assert ids == [index for index in range(IMAGES) if index != BROKEN]


@pytest.mark.slow
def test_the_first_process_alone_writes_and_leaves_nothing_behind(found):
    names = {path.name for path in found[0].iterdir()}
    assert names == {path.name for path in found[1].iterdir()}
    assert not [name for name in names if "rerank" in name]
