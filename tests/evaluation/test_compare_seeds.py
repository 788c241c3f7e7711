"""Lines that compare trainings with several seeds."""

from blip2_jax.evaluation.compare_seeds import compare_seeds, read_statistics
from blip2_jax.evaluation.examples import write_examples


def record(folder, name, right):
    examples = [
        {"unit": "question", "id": number, "scores": {"exact_match": 100.0 * value}}
        for number, value in enumerate(right)
    ]
    write_examples(folder / f"{name}.examples.jsonl", examples)
    return read_statistics(folder / f"{name}.json")


def test_means_and_the_paired_difference(tmp_path):
    first = [record(tmp_path, f"a{seed}", [1, 1, 1, seed]) for seed in (0, 1)]
    other = [record(tmp_path, f"b{seed}", [1, 1, 0, seed]) for seed in (0, 1)]
    lines = [line.strip() for line in compare_seeds(first, other)]
    assert len(lines) == 3
    assert lines[0].startswith("exact_match  87.5 [")
    assert lines[1].startswith("exact_match, against  62.5 [")
    assert lines[2].startswith("exact_match, less it  +25.0 [")
    assert lines[2].endswith("(+25.0, +25.0)")
    assert len(list(compare_seeds(first))) == 1
