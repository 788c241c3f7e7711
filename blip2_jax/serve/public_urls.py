"""Downloads from public addresses only, so that a server reads no private network."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import time
import urllib.request
from typing import Any


def public_opener() -> urllib.request.OpenerDirector:
    """Return an opener of http(s) URLs that connects to public addresses only.

    Every connection is checked, those of redirects too. The address that is checked is
    the one that is connected to, so that a name cannot resolve to another one between.
    Proxies of the environment and schemes other than http and https are not used.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        _PublicHTTPHandler(),
        _PublicHTTPSHandler(),
        _RedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def is_public(address: str) -> bool:
    """Return True for an IP address of the public internet.

    IPv4 addresses inside IPv6 ones (mapped, 6to4, Teredo, NAT64) are looked at too.

    Args:
      address: an IPv4 or IPv6 address, perhaps with a zone ("fe80::1%eth0").
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if any(ip.version == net.version and ip in net for net in _NOT_PUBLIC):
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64:
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if any(v4 is not None and not v4.is_global for v4 in inner):
            return False
        if ip.ipv4_mapped:
            return True
    return ip.is_global and not ip.is_multicast


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Python's versions disagree on these, or say that they are global.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments
        "::/96",  # IPv4-compatible
        "64:ff9b:1::/48",  # NAT64 inside a network
        "3fff::/20",  # documentation
        "fec0::/10",  # site-local
    )
)


def connect_public(
    place: tuple[str, int], timeout: Any = None, source: Any = None
) -> socket.socket:
    """Connect to a host if it has public addresses only.

    Args:
      place: host and port.
      timeout: of the connection, in seconds.
      source: address to connect from.

    Raises:
      OSError: there is no such host, it has a private address, or it does not answer.
    """
    host, port = place
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(is_public, addresses)):
        raise PermissionError(f"{host} is not on the public internet")
    return socket.create_connection((addresses[0], port), timeout, source)


class _RedirectHandler(urllib.request.HTTPRedirectHandler):
    """Follows redirects within the time of the first request; reads no body of one."""

    def http_request(self, req: Any) -> Any:
        """Note when the whole download must have its answer."""
        if not hasattr(req, "deadline"):
            req.deadline = time.monotonic() + req.timeout
        return req

    https_request = http_request

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        """Return the next request.

        Raises:
          TimeoutError: there is no time left for it.
        """
        fp.close()  # the caller would read it, and it may be endless
        new: Any = super().redirect_request(req, fp, code, msg, headers, newurl)
        req.timeout = req.deadline - time.monotonic()  # the caller's, of the next one
        if req.timeout <= 0:
            raise TimeoutError
        new.deadline = req.deadline
        return new


class _PublicHTTPConnection(http.client.HTTPConnection):
    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._create_connection = connect_public


class _PublicHTTPSConnection(http.client.HTTPSConnection):
    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._create_connection = connect_public


class _PublicHTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_PublicHTTPConnection, req)


class _PublicHTTPSHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_PublicHTTPSConnection, req)
