"""Load the HTTP server beyond what it can serve: `python -m benchmarks.server_load`.

Starts `blip2-jax serve --model shapes` and asks for greedy captions over loopback: one
request at a time, then as many at once as the server takes, which gives its capacity,
then `--times` (4) times that capacity in an open loop, for `--seconds` each. Beside it,
the same model in this process, one image at a time. Every request must be answered,
with 200 or 429; anything else is lost, and the exit code is 1.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from typing import Any

import numpy as np

import blip2_jax
from benchmarks import harness

HEAD = (
    "requests",
    "sent/s",
    "answered/s",
    "p50 ms",
    "p99 ms",
    "200",
    "429",
    "lost",
)
TITLE = "HTTP server under load"
GREEDY = {"num_beams": 1, "max_tokens": 16}
PATH = "/v1/chat/completions"


@dataclasses.dataclass
class Outcome:
    """Answers of one measurement.

    Attributes:
      sent: number of requests.
      seconds: from the first request to the last answer.
      taken: seconds of each request that was answered with 200.
      statuses: number of answers by status; 0: no answer.
    """

    sent: int = 0
    seconds: float = 0.0
    taken: list[float] = dataclasses.field(default_factory=list)
    statuses: dict[int, int] = dataclasses.field(default_factory=dict)

    @property
    def lost(self) -> int:
        """Number of requests without an answer, or with an unexpected one."""
        return sum(n for status, n in self.statuses.items() if status not in (200, 429))

    @property
    def rate(self) -> float:
        """Answers of the model per second."""
        return len(self.taken) / self.seconds

    def row(self, name: str) -> list[str]:
        """Return a row of the table."""
        p50, p99 = (1e3 * np.percentile(self.taken, p) for p in (50, 99))
        counts = [self.statuses.get(status, 0) for status in (200, 429)]
        return [
            name,
            f"{self.sent / self.seconds:.0f}",
            f"{self.rate:.0f}",
            f"{p50:.0f}",
            f"{p99:.0f}",
            *map(str, [*counts, self.lost]),
        ]


def main() -> int:
    """Measure; the exit code is 1 if a request was lost."""
    parser = harness.arguments(__doc__ or "", rounds=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--times", type=float, default=4.0, help="overload")
    parser.add_argument("--max_batch", type=int, default=8)
    parser.add_argument("--max_queue", type=int, default=64)
    options = parser.parse_args()
    seconds = 1.0 if options.tiny else options.seconds
    rate = model_alone(seconds)
    process, port = start_server(options)
    try:
        load = Load(port, picture())
        outcomes = asyncio.run(measure(load, seconds, options))
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    finally:
        process.kill()
    rows = [outcome.row(name) for name, outcome in outcomes.items()]
    served = outcomes["at once"].rate
    body = harness.table(HEAD, rows) + (
        f"\nThe model in one process, one image at a time: {rate:.0f}/s; the server "
        f"with {options.max_batch} a batch: {served:.0f}/s, {served / rate:.1f} times "
        f"as many. Exit code after SIGTERM: {code}."
    )
    about = (
        f"`shapes`, greedy captions of at most {GREEDY['max_tokens']} tokens, "
        f"{seconds:g} s each, max_batch {options.max_batch}, max_queue "
        f"{options.max_queue}, client and server on the same {options.threads} cores."
    )
    harness.report(options, TITLE, about, body)
    return int(code != 0 or any(outcome.lost for outcome in outcomes.values()))


async def measure(load: Load, seconds: float, options: Any) -> dict[str, Outcome]:
    """Run the three loads, one after the other."""
    outcomes = {"one at a time": await load.closed_loop(1, seconds)}
    everything = options.max_batch + options.max_queue
    outcomes["at once"] = await load.closed_loop(everything, seconds)
    rate = options.times * outcomes["at once"].rate
    name = f"{options.times:g} times as many"
    outcomes[name] = await load.open_loop(rate, 4 * everything, seconds)
    return outcomes


class Load:
    """Sends one request again and again, over connections that stay open."""

    def __init__(self, port: int, body: bytes):
        """Prepare the bytes of a request."""
        self._port = port
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body

    async def closed_loop(self, clients: int, seconds: float) -> Outcome:
        """Let clients ask again as soon as they are answered."""
        end = time.perf_counter() + seconds
        return await self._run(
            clients, lambda: 0.0 if time.perf_counter() < end else None
        )

    async def open_loop(self, rate: float, clients: int, seconds: float) -> Outcome:
        """Send requests at a rate, whether or not earlier ones are answered."""
        start, count = time.perf_counter(), iter(range(int(rate * seconds)))

        def next_wait() -> float | None:
            number = next(count, None)
            if number is None:
                return None
            return max(0.0, start + number / rate - time.perf_counter())

        return await self._run(clients, next_wait)

    async def _run(self, clients: int, next_wait: Any) -> Outcome:
        """Let clients ask until `next_wait` returns None in place of seconds."""
        outcome, start = Outcome(), time.perf_counter()

        async def client() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            while (wait := next_wait()) is not None:
                await asyncio.sleep(wait)
                begin = time.perf_counter()
                outcome.sent += 1
                try:
                    writer.write(self._request)
                    status = await _read_answer(reader)
                except (OSError, EOFError, ValueError):
                    status = 0
                if status == 200:
                    outcome.taken.append(time.perf_counter() - begin)
                outcome.statuses[status] = outcome.statuses.get(status, 0) + 1
                if status == 0:
                    return
            writer.close()

        await asyncio.gather(*(client() for _ in range(clients)))
        outcome.seconds = time.perf_counter() - start
        return outcome


async def _read_answer(reader: asyncio.StreamReader) -> int:
    """Read an answer; returns its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    if length is None:
        raise ValueError("an answer without a length")
    await reader.readexactly(int(length[1]))
    return int(head.split(b" ", 2)[1])


def picture() -> bytes:
    """Return the body of a request for a caption of an example picture."""
    file = io.BytesIO()
    blip2_jax.example_image().save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    message = {"role": "user", "content": [part]}
    return json.dumps({"messages": [message], **GREEDY}).encode()


def model_alone(seconds: float) -> float:
    """Return captions per second of the model, called with one image at a time."""
    model, image = blip2_jax.load("shapes"), blip2_jax.example_image()
    settings = {"num_beams": 1, "max_new_tokens": GREEDY["max_tokens"]}
    model.caption(image, **settings)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        model.caption(image, **settings)
        count += 1
    return count / (time.perf_counter() - start)


def start_server(options: Any) -> tuple[subprocess.Popen[str], int]:
    """Start the server and compile what the loads need.

    Returns:
      The process and its port.
    """
    command = [sys.executable, "-m", "blip2_jax.cli.main", "serve", "--model=shapes"]
    limits = [
        f"--{name}={getattr(options, name)}" for name in ("max_batch", "max_queue")
    ]
    process = subprocess.Popen(
        [*command, "--port=0", "--warm_tokens=0", *limits],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    port = 0
    while not port:
        line = process.stderr.readline()
        if not line:
            raise RuntimeError("the server did not start")
        found = re.search(r"http://.*:(\d+)", line)
        port = int(found[1]) if found else 0
    while not is_ready(port):
        time.sleep(0.5)
    # Batches of all sizes: powers of two.
    clients = 1
    while clients <= options.max_batch:
        asyncio.run(Load(port, picture()).closed_loop(clients, 1.0))
        clients *= 2
    return process, port


def is_ready(port: int) -> bool:
    """Ask the server if it is ready."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready"):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
