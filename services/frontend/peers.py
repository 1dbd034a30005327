"""Who is at the other end of a connection, where that end is on this machine: the kernel's table of TCP connections."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_ESTABLISHED = "01"


class Endpoint(NamedTuple):
    """One end of a connection: an address in its shortest form, and a port."""

    address: str
    port: int


def endpoint(peer: str) -> Endpoint | None:
    """The caller's end as gRPC names it: "ipv4:127.0.0.1:4711", "ipv6:%5B::1%5D:4711"; None for anything else."""
    family, _, rest = peer.partition(":")
    if family not in ("ipv4", "ipv6"):
        return None
    host, _, port = unquote(rest).rpartition(":")
    try:
        return Endpoint(_shortest(ipaddress.ip_address(host.strip("[]"))), int(port))
    except ValueError:
        return None


def local_users(port: int) -> dict[Endpoint, int]:
    """The callers' ends of all connections from this machine to `port` of this machine, each with its process' user id.

    A caller elsewhere, or in a network namespace of its own, is not among them. Empty where there is no such table.
    """
    return {own: user for own, other, user in _connections() if other.port == port}


def _connections() -> Iterator[tuple[Endpoint, Endpoint, int]]:
    for table in TABLES:
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _ESTABLISHED:
                yield _end(fields[1]), _end(fields[2]), int(fields[7])


def _end(text: str) -> Endpoint:
    """The kernel writes addresses as 32-bit words in hexadecimal, each in this machine's byte order."""
    address, _, port = text.partition(":")
    words = (bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8))
    return Endpoint(_shortest(ipaddress.ip_address(b"".join(words))), int(port, 16))


def _shortest(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
