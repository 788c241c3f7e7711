"""`--data PATH` of `train` and `evaluate`: the detected source replaces the data."""

import json

import pytest

from blip2_jax.cli import evaluate, train
from blip2_jax.cli.evaluation_run import set_up
from blip2_jax.training import tasks
from blip2_jax.training.train_config import check_same_run, read_config, write_config
from tests.support import toy_task
from tests.support.layouts import NAMES, write_csv, write_images
from tests.support.processes import SUPPORT
from tests.support.tiny_runs import make_run

TINY = f"--config={SUPPORT / 'tiny_experiment.py'}"


def training_config(*arguments):
    return train.requested_config(train.make_parser().parse_args([TINY, *arguments]))


def test_the_detected_source_is_the_training_data(tmp_path, capsys):
    folder = write_csv(tmp_path / "data")
    config = training_config("--data", str(folder))
    spec = {
        "kind": "csv",
        "path": f"{folder}/captions.txt",
        "columns": {"image": "image", "caption": "caption"},
        "images": f"{folder}/Images",
    }
    assert [dict(source) for source in config.data.train] == [spec]
    assert "captions.txt: CSV; 5 images, 10 captions" in capsys.readouterr().err
    write_config(tmp_path, config)
    check_same_run(read_config(tmp_path), training_config("--data", str(folder)))
    given = training_config("--data", json.dumps(spec))
    check_same_run(read_config(tmp_path), given)


def test_a_run_on_a_path_continues_and_notices_other_captions(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(tasks.TASKS, "stage1", toy_task.make_toy)
    folder = write_csv(tmp_path / "data")
    command = [f"--config={SUPPORT / 'toy_task.py'}", f"--data={folder}"]
    command += [f"--workdir={tmp_path / 'run'}", "--config.steps=3"]
    assert train.main(command) == 0
    assert "finished 3 steps" in capsys.readouterr().err
    assert train.main(command) == 0
    (folder / "captions.txt").write_text(
        (folder / "captions.txt").read_text().replace("red", "bed")
    )
    assert train.main(command) == 1
    assert "captions.txt has other texts and their order" in capsys.readouterr().err


def test_dry_run_shows_the_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "data")
    assert train.main([TINY, "--data=data", "--dry_run"]) == 0
    output = capsys.readouterr().out
    assert sorted(name for name in NAMES if f" {name} " in output) == NAMES


def test_columns_images_and_split_complete_a_path(tmp_path, capsys):
    write_images(tmp_path / "a" / "b" / "Bilder")
    rows = [
        f"{name};ein Satz;{'test' if n else 'train'}" for n, name in enumerate(NAMES)
    ]
    path = tmp_path / "daten.csv"
    path.write_text("\n".join(["Datei;Satz;split", *rows]))
    options = [f"--data={path}", "--columns=image=Datei,caption=Satz"]
    assert train.main([TINY, *options, "--dry_run"]) == 1
    assert f"first path tried is '{tmp_path}/0000.png'" in capsys.readouterr().err
    options.append(f"--images={tmp_path / 'a' / 'b' / 'Bilder'}")
    assert training_config(*options).data.train[0]["splits"] == ["train"]
    assert training_config(*options, "--split=test").data.train[0]["splits"] == ["test"]
    for option in ("--images=x", "--columns=image=x", "--split=x"):
        assert train.main([TINY, option, "--dry_run"]) == 2
        assert f"{option.partition('=')[0]} needs --data" in capsys.readouterr().err
    assert train.main([TINY, f"--data={path}", "--columns=Datei", "--dry_run"]) == 2
    assert "--columns is FIELD=NAME,..., not 'Datei'" in capsys.readouterr().err


def test_evaluation_of_a_path(tmp_path):
    run = make_run(tmp_path / "run", "stage1")
    folder = write_csv(tmp_path / "data")
    specs = tmp_path / "specs.json"
    arguments = ["--model", str(run.directory), "--task", "retrieval"]
    parser = evaluate.make_parser()

    def config(data):
        parsed = parser.parse_args([*arguments, "--data", str(data)])
        return evaluate.requested_config(parsed)

    evaluation = set_up(config(folder))
    assert [record.key for record in evaluation.data.records] == NAMES
    specs.write_text(json.dumps(evaluation.specs))
    assert set_up(config(specs)).specs == evaluation.specs
    specs.write_text('[{"kind": "tar"}]')
    with pytest.raises(ValueError, match="unknown source kind 'tar'"):
        set_up(config(specs))
