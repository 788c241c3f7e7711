"""Object stores on localhost: S3 and GCS emulators, and a proxy that makes S3 fail."""

import contextlib
import http.client
import http.server
import itertools
import os
import re
import socket
import time
import urllib.parse

import pytest

from blip2_jax.parallel.store_retries import PATIENCE
from tests.support.local_server import LocalServer
from tests.support.processes import free_port

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class S3:
    """A bucket of an S3 emulator.

    Attributes:
      url: of the emulator.
      root: "s3://BUCKET".
      environment: variables that name the emulator.
    """

    def __init__(self, url, bucket):
        self.url, self.root, self.bucket = url, f"s3://{bucket}", bucket
        self.environment = CREDENTIALS | {"AWS_ENDPOINT_URL": url}

    def client(self):
        """Return a client that goes straight to the emulator."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def names(self, prefix=""):
        """List the names of all objects below a prefix."""
        pages = self.client().get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=self.bucket, Prefix=prefix)
        return [item["Key"] for page in found for item in page.get("Contents", ())]

    def put(self, folder, prefix=""):
        """Upload the files of a local folder; return the "s3://" name."""
        client = self.client()
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                client.upload_file(str(path), self.bucket, f"{prefix}/{name}")
        return f"{self.root}/{prefix}"


_NUMBERS = itertools.count()


@contextlib.contextmanager
def s3_server():
    """Run an emulator of S3; yields its URL."""
    pytest.importorskip("s3fs", reason="s3:// needs the extra `remote`")
    server = pytest.importorskip("moto.server", reason="needs moto[server]")
    emulator = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    emulator.start()
    host, port = emulator.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        emulator.stop()


@contextlib.contextmanager
def use_store(url, monkeypatch):
    """Make a bucket and point this process's `s3://` at it; yields an `S3`."""
    import s3fs

    bucket = S3(url, f"bucket-{os.getpid()}-{next(_NUMBERS)}")
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(PATIENCE, "20")
    bucket.client().create_bucket(Bucket=bucket.bucket)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        yield bucket
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


class FlakyProxy(LocalServer):
    """An HTTP proxy in front of an emulator, which fails as it is told.

    Attributes:
      url: of the proxy.
      fail_every: of so many requests one fails, in turn by 503, by a dropped
        connection, by half an answer and by a slow one; 0: none.
      outage: every request fails; a number: so many requests.
      outage_after: end of a path; when it was written, the outage begins.
      status: of all answers, without a request to the emulator; 0: none.
      requests: (method, path, bytes of the answer) of the requests that passed.
      failures: number of requests that failed.
    """

    def __init__(self, target):
        self.fail_every, self.outage, self.status = 0, False, 0
        self.outage_after = ""
        self.requests, self.failures = [], 0
        self._target = urllib.parse.urlsplit(target)
        self._count = itertools.count(1)
        self._kinds = itertools.cycle(("503", "drop", "half", "slow"))
        super().__init__(_Proxy, "proxy")

    def failure(self):
        """Return how the next request fails, or ""."""
        if self.outage:
            if self.outage is not True:
                self.outage -= 1
            self.failures += 1
            return "503"
        if self.fail_every and next(self._count) % self.fail_every == 0:
            self.failures += 1
            return next(self._kinds)
        return ""

    def pass_on(self, method, path, body, headers):
        """Send a request to the emulator; return status, headers and content."""
        connection = http.client.HTTPConnection(
            self._target.hostname, self._target.port, timeout=60
        )
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        self.requests.append((method, path, len(content)))
        if method == "PUT" and self.outage_after:
            self.outage = self.outage or path.endswith(self.outage_after)
        return answer.status, answer.getheaders(), content


class _Proxy(http.server.BaseHTTPRequestHandler):
    proxy: FlakyProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _serve(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else None
        failure = self.proxy.failure()
        if failure == "drop":
            return self._drop()
        if failure == "503":
            return self._answer(503, [], b"<Error><Code>SlowDown</Code></Error>")
        if self.proxy.status:
            return self._answer(self.proxy.status, [], b"")
        if failure == "slow":
            time.sleep(0.3)
        headers = dict(self.headers)
        status, answer, content = self.proxy.pass_on(
            self.command, self.path, body, headers
        )
        if failure == "half" and self.command == "GET" and len(content) > 1:
            self._head(status, answer, len(content))
            self.wfile.write(content[: len(content) // 2])
            return self._drop()
        return self._answer(status, answer, content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _drop(self):
        self.wfile.flush()
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _head(self, status, headers, length):
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _answer(self, status, headers, content):
        length = len(content)
        if self.command == "HEAD":
            given = {name.lower(): value for name, value in headers}
            length, content = int(given.get("content-length", 0)), b""
        self._head(status, headers, length)
        self.wfile.write(content)


@contextlib.contextmanager
def flaky_store(url, monkeypatch):
    """Like `use_store`, through a proxy; yields the bucket and the proxy."""
    proxy = FlakyProxy(url)
    try:
        with use_store(proxy.url, monkeypatch) as bucket:
            yield bucket, proxy
    finally:
        proxy.close()


class _Part:
    """A part of an upload, with the methods of `email.message.Message` in use."""

    def __init__(self, head, content):
        self._type = head.decode().partition("Content-Type:")[2].strip()
        self._content = content

    def get_payload(self, decode=False):
        return self._content

    def get_content_type(self):
        return self._type.partition(";")[0]


class _MultipartParser:
    """Split an upload into its parts byte for byte.

    Of a content that ends with a carriage return, the emulator's own parser takes the
    last byte for a part of the line end, because gcsfs ends lines with a line feed.
    """

    def parsebytes(self, data):
        head, _, body = data.partition(b"\n")
        boundary = b"--" + re.search(rb'boundary="?([^";\s]+)', head)[1]
        parts = body.removeprefix(boundary).split(b"\n" + boundary)[:2]
        return _Part(head, [_Part(*part.split(b"\n\n", 1)) for part in parts])


@contextlib.contextmanager
def gcs_store(monkeypatch):
    """Run an emulator of GCS; yields "gs://BUCKET"."""
    # Hierarchical buckets need gRPC, which the emulator lacks; read on import.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    gcsfs = pytest.importorskip("gcsfs", reason="gs:// needs the extra `remote`")
    emulators = pytest.importorskip("gcp_storage_emulator.server")
    import fsspec

    monkeypatch.setattr(emulators, "BytesParser", _MultipartParser)
    port = free_port()
    server = emulators.create_server(
        "localhost", port, in_memory=True, default_bucket="bucket"
    )
    server.start()
    monkeypatch.setenv(PATIENCE, "20")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    gcsfs.GCSFileSystem.clear_instance_cache()
    try:
        yield "gs://bucket"
    finally:
        gcsfs.GCSFileSystem.clear_instance_cache()
        server.stop()
