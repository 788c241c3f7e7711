"""Jobs over shards: what is finished is not done again, what is not is done whole."""

import dataclasses
import pathlib

import pytest

from blip2_jax.parallel import shard_jobs


@dataclasses.dataclass
class Squares(shard_jobs.ShardJob):
    """Write the square of each shard's number; fail at one of them."""

    output: pathlib.Path
    count: int = 5
    fail_at: int = -1
    power: int = 2

    def settings(self):
        return {"power": self.power}

    def num_shards(self):
        return self.count

    def file_name(self, shard):
        return f"{shard:05d}.txt"

    def open(self):
        self.attempts = []

    def write_shard(self, shard, path):
        self.attempts.append(shard)
        path.write_text("half of it")
        if shard == self.fail_at:
            raise RuntimeError("killed")
        path.write_text(str(shard**self.power))
        return {"shard": shard}


def contents(path):
    return {file.name: file.read_text() for file in sorted(path.glob("*.txt"))}


def test_a_killed_job_continues_with_what_is_missing(tmp_path):
    job = Squares(pathlib.Path(tmp_path / "out"), fail_at=2)
    with pytest.raises(RuntimeError):
        shard_jobs.run_shards(job)
    assert contents(job.output) == {"00000.txt": "0", "00001.txt": "1"}
    job = dataclasses.replace(job, fail_at=-1)
    reports = shard_jobs.run_shards(job)
    assert job.attempts == [2, 3, 4]
    assert reports == [{"shard": shard} for shard in range(5)]
    assert not list(job.output.glob(".*"))


def test_processes_and_parts_write_the_same_files(tmp_path):
    alone = Squares(pathlib.Path(tmp_path / "alone"))
    shard_jobs.run_shards(alone)
    parts = Squares(pathlib.Path(tmp_path / "parts"))
    assert len(shard_jobs.run_shards(parts, part=(1, 2))) == 2
    shard_jobs.run_shards(parts, processes=2, part=(0, 2))
    assert contents(parts.output) == contents(alone.output)


def test_a_damaged_report_or_a_lost_file_is_made_again(tmp_path):
    job = Squares(pathlib.Path(tmp_path / "out"))
    shard_jobs.run_shards(job)
    (job.output / "00001.txt.report.json").write_text("{")
    (job.output / "00003.txt").unlink()
    shard_jobs.run_shards(job)
    assert job.attempts == [1, 3]


def test_other_settings_are_refused(tmp_path):
    job = Squares(pathlib.Path(tmp_path / "out"))
    shard_jobs.run_shards(job)
    with pytest.raises(shard_jobs.OtherSettings, match="power is 3, was 2"):
        shard_jobs.run_shards(dataclasses.replace(job, power=3))
