"""`blip2-jax report --runs`: pages about runs, whatever state they are in."""

import json
import re

from blip2_jax.cli.report import main
from tests.cli.test_report import questions, write
from tests.support.run_directories import write_run_directory


def report(folder, *runs, more=()):
    out = folder / "out"
    assert main([*more, "--out", str(out), "--runs", *map(str, runs)]) == 0
    return out.with_suffix(".md").read_text(), out.with_suffix(".html").read_text()


def charts(page):
    return re.findall('role="img" aria-label="([^"]*)"', page)


def test_a_run_with_all_that_it_remembers(tmp_path):
    run = write_run_directory(tmp_path / "my_run")
    text, page = report(tmp_path, run)
    assert "| progress | finished 400 steps |" in text
    assert re.search(r"\| cider \| 128.2 \| 389.6 \(step 400\) \| 389.6 \|", text)
    assert charts(page)[:4] == ["cider", "bleu 4", "rouge l", "loss (log)"]
    assert "learning rate" in charts(page) and "peak memory gb" in charts(page)
    assert page.count("<polyline") > len(charts(page))  # raw values behind smooth ones
    assert page.count("<div class=card>") == 4
    assert page.count("data:image/jpeg") == 4
    assert "step 50 </span>" in page and "step 400 </span>" in page
    assert "frozen weights: shapes:opt" in page and "27dcfa74d334" in page
    assert "2026-01-01T12:30:00" in page and "0.10.2" in page
    assert "&quot;batch_size&quot;: 8" in page


def test_runs_side_by_side(tmp_path):
    first = write_run_directory(tmp_path / "a" / "run")
    second = write_run_directory(tmp_path / "b" / "run", seed=1, until=250)
    text, page = report(tmp_path, first, second)
    assert f"|  | {first} | {second} |" in text  # both are named "run"
    assert "step 250 of 400: in progress or stopped" in text
    assert "| seed | 0 | 1 |" in text
    assert f"best of {second}" in text
    assert "Keys that differ" in page
    assert "<td>seed</td><td>0</td><td>1</td>" in page
    cider = page[page.index('aria-label="cider"') :]
    assert cider[: cider.index("</svg>")].count("<polyline") == 2


BROKEN = [b"\0" * 40, b"{", b"[3]", b'{"loss": 1.0}', b'{"step": "x"}', b"\xff\xfe"]


def test_broken_lines_are_left_out_and_counted(tmp_path):
    run = write_run_directory(tmp_path / "run")
    for name in ("metrics.jsonl", "samples.jsonl", "starts.jsonl"):
        path = run / name
        lines = path.read_bytes().splitlines()
        path.write_bytes(b"\n".join([*BROKEN, *lines, b'{"step": 9, "lo']))
    with (run / "samples.jsonl").open("a") as file:
        file.write('\n{"step": 8, "samples": [1, {}]}\n{"step": 9, "samples": 3}\n')
    (run / "sources.json").write_text('{"data": 3, "frozen": [], "hub": null}')
    (run / "evaluation_vqa.json").write_text("{")
    text, page = report(tmp_path, run)
    assert "metrics.jsonl: 6 lines cannot be read" in text
    assert "evaluation_vqa.json is left out" in text
    assert charts(page)[0] == "cider"


def test_a_resumed_log_with_repeated_steps_and_missing_values(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    lines = [
        {"step": 1, "loss": 5.0, "compile_seconds": 60.0, "mfu": 0.001},
        {"step": 3, "loss": None, "note": "x", "fine": True},
        {"step": 2, "loss": 4.0},
        {"step": 2, "loss": 3.0},
    ]
    path = run / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text, page = report(tmp_path, run)
    assert "no config.json" in text and "| progress | step 2 |" in text
    assert charts(page) == ["loss"]
    assert page.count("<circle") == 2 and '600">3</tspan>' in page


def test_a_run_before_its_first_step(tmp_path):
    run = write_run_directory(tmp_path / "run")
    for name in ("metrics.jsonl", "samples.jsonl", "starts.jsonl", "sources.json"):
        (run / name).unlink()
    text, page = report(tmp_path, run)
    assert "step 0 of 400" in text and "no metrics.jsonl yet" in text
    assert not charts(page)


def test_records_in_the_directory_are_part_of_the_page(tmp_path):
    run = write_run_directory(tmp_path / "run")
    scores = {"vqa_accuracy": 33.33}
    write(run, "evaluation_vqa", "vqa", questions(range(4)), scores)
    (run / "evaluation_vqa.predictions.json").write_text("[]")
    other = write(tmp_path, "other", "vqa", questions(range(8)), {"vqa_accuracy": 66.7})
    text, page = report(tmp_path, run, more=(other,))
    assert "| vqa_accuracy | 33.33 [32.33, 34.33] | 66.70 [65.70, 67.70] |" in text
    assert "Accuracy" in page or "what color" in page


def test_wrong_arguments(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "out"), "--runs", str(tmp_path)]) == 1
    assert "is no directory of a run" in capsys.readouterr().err
    assert main([]) == 2
    assert "name records of evaluations, or --runs DIR" in capsys.readouterr().err
