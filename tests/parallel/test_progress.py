"""Progress of a long evaluation."""

from blip2_jax.parallel import progress


def test_lines_without_a_terminal(capsys):
    items = progress.track_progress(range(3), "re-ranking", interval_s=0)
    assert list(items) == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "re-ranking: 1 of 3",
        "re-ranking: 2 of 3",
    ]
    list(progress.track_progress(range(3), "re-ranking"))
    assert capsys.readouterr().err == ""
