"""A job over shards that writes squares, and fails where it is told to."""

import dataclasses
import os
import pathlib
import signal
import time

from blip2_jax.parallel.shard_jobs import ShardJob


@dataclasses.dataclass
class Squares(ShardJob):
    """Write the square of each shard's number.

    Attributes:
      output: see `ShardJob`.
      count: number of shards.
      power: exponent in place of 2.
      fail_at: a shard that raises an error.
      die_at: a shard that kills its process.
      deaths: number of attempts at `die_at` that die.
      seconds: duration of a shard.
      log: directory in which each attempt at a shard leaves a file; None: no log.
    """

    output: pathlib.Path
    count: int = 5
    power: int = 2
    fail_at: int = -1
    die_at: int = -1
    deaths: int = 1
    seconds: float = 0.0
    log: pathlib.Path | None = None
    uses_model = False

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
        number = self._count_attempt(shard)
        time.sleep(self.seconds)
        if shard == self.die_at and number <= self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        if shard == self.fail_at:
            raise RuntimeError("no square")
        path.write_text(str(shard**self.power))
        return {"shard": shard}

    def _count_attempt(self, shard):
        """Log an attempt; returns its number, from 1."""
        if self.log is None:
            return 0
        number = len(list(self.log.glob(f"{shard}.*"))) + 1
        (self.log / f"{shard}.{number}.{os.getpid()}").touch()
        return number


class NeverOpens(Squares):
    """A job whose inputs cannot be opened."""

    def open(self):
        raise ValueError("no inputs")
