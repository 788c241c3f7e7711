"""Downloads from public addresses only: names, redirects and schemes."""

import http.server
import socket

import pytest

from blip2_jax.inference.image_urls import read_url
from blip2_jax.serve import public_urls
from tests.support.local_server import LocalServer


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers /a, and redirects other paths to what follows the slash."""

    chunks = 0  # of 100 kB, in the body of a redirect
    whole_bodies = 0  # that clients have read

    def do_GET(self):
        if self.path == "/a":
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")
        else:
            self.send_response(302)
            self.send_header("Location", self.path[1:])
            self.end_headers()
            try:
                for _ in range(self.chunks):
                    self.wfile.write(bytes(100_000))
                Handler.whole_bodies += 1
            except OSError:  # the client has left
                pass

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = LocalServer(Handler, "owner")
    yield server
    server.close()


def read(url, **options):
    return read_url(url, opener=public_urls.public_opener(), **options)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "0.0.0.0", "100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::",
        "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "2002:7f00:1::",
        "64:ff9b::a00:1", "2001:db8::1", "::ffff:10.0.0.1",
        "64:ff9b:1::a00:1", "fec0::1", "::127.0.0.1", "::8.8.8.8", "3fff::1",
        "192.0.0.8",
    ],
)  # fmt: skip
def test_addresses_of_no_public_host(address):
    assert not public_urls.is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1", "::ffff:8.8.8.8"])
def test_addresses_of_public_hosts(address):
    assert public_urls.is_public(address)


def test_this_machine_is_not_read(server):
    for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
        with pytest.raises(ValueError, match="not on the public internet"):
            read(f"{url}/a")


def test_redirects_are_checked_too(server, monkeypatch):
    monkeypatch.setattr(public_urls, "is_public", lambda ip: ip == "127.0.0.1")
    assert read(f"{server.url}/a") == b"hello"
    other = server.url.replace("127.0.0.1", "127.0.0.2")
    with pytest.raises(ValueError, match=r"127.0.0.2 is not on the public internet"):
        read(f"{server.url}/{other}/a")
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/a", "data:,hello"):
        with pytest.raises(ValueError, match="cannot read the image"):
            read(f"{server.url}/{target}")
    with pytest.raises(ValueError, match="larger than"):
        read(f"{server.url}/a", max_bytes=4)


def test_the_body_of_a_redirect_is_not_read(server, monkeypatch):
    monkeypatch.setattr(public_urls, "is_public", lambda ip: True)
    monkeypatch.setattr(Handler, "chunks", 500)  # more than the sockets hold
    monkeypatch.setattr(Handler, "whole_bodies", 0)
    assert read(f"{server.url}/{server.url}/a") == b"hello"
    assert Handler.whole_bodies == 0


def test_redirects_have_one_time_limit(server, monkeypatch):
    monkeypatch.setattr(public_urls, "is_public", lambda ip: True)
    opener = public_urls.public_opener()
    with opener.open(f"{server.url}/{server.url}/a", timeout=20) as response:
        assert response.read() == b"hello"
    times = iter([0.0, 21.0])
    monkeypatch.setattr(public_urls.time, "monotonic", lambda: next(times, 21.0))
    with pytest.raises(TimeoutError):
        opener.open(f"{server.url}/{server.url}/a", timeout=20)


def test_a_name_with_one_private_address_is_refused(monkeypatch):
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))
        for address in ("8.8.8.8", "10.0.0.1")
    ]
    monkeypatch.setattr(public_urls.socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(PermissionError, match="not on the public internet"):
        public_urls.connect_public(("example.com", 80))
