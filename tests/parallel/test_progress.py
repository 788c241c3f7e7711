"""Progress of long work: lines without a terminal."""

import re

from blip2_jax.parallel.progress import WorkProgress, track_progress


def test_lines_tell_what_is_done_and_the_rate_of_this_run(capsys):
    with WorkProgress("caption", "images", 4000, done=1000, interval_s=0) as progress:
        for _ in range(3):
            progress.advance(1000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # none after the end
    pattern = r"caption: 2,000 of 4,000 images, [\d,.]+ images/s, [\d:]+ left"
    assert re.fullmatch(pattern, lines[0])


def test_items_are_counted_when_the_next_is_asked_for(capsys):
    items = track_progress(range(3), "re-ranking", "images", interval_s=0)
    assert list(items) == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "re-ranking: 1 of 3 images",
        "re-ranking: 2 of 3 images",
    ]
    list(track_progress(range(3), "re-ranking", "images"))
    assert capsys.readouterr().err == ""
