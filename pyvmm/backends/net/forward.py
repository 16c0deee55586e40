"""Ports of the host that lead into a guest, and the two ways in which people write them.

Imports errors. One is QEMU's `hostfwd`, the other that of container tools.
"""

from __future__ import annotations

import socket

from pyvmm.errors import UsageError

LOOPBACK = "127.0.0.1"
PROTOCOLS = ("tcp", "udp")


class Forward:
    """What comes to port `host_port` of the host's address `host` is led to `guest_port` of the guest.

    `protocol` is one of PROTOCOLS, `host` an IPv4 or IPv6 address. Raises UsageError.
    """

    __slots__ = ("guest_port", "host", "host_port", "protocol")

    def __init__(self, protocol: str, host_port: int, guest_port: int, host: str = LOOPBACK) -> None:
        if protocol not in PROTOCOLS:
            raise UsageError(f"protocol {protocol!r} (expected tcp or udp)")
        for port in (host_port, guest_port):
            if not 1 <= port <= 65535:
                raise UsageError(f"port {port} (expected 1 to 65535)")
        if not _is_address(host):
            raise UsageError(f"address {host!r} (expected one of the host's, as 127.0.0.1 or ::1)")
        self.protocol = protocol
        self.host = host
        self.host_port = host_port
        self.guest_port = guest_port

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.protocol} {host}:{self.host_port} to the guest's {self.guest_port}"

    def __repr__(self) -> str:
        return f"<Forward {self}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Forward) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


def parse_forward(text: str) -> Forward:
    """The forward that `text` writes as [tcp|udp]:[ADDR]:PORT-[GUESTADDR]:PORT, QEMU's hostfwd.

    Without ADDR it is the host's loopback. The guest has one address, so that is not chosen here. Raises UsageError.
    """
    protocol, first, rest = text.partition(":")
    outside, second, inside = rest.rpartition("-")
    host, third, host_port = outside.rpartition(":")
    guest, fourth, guest_port = inside.rpartition(":")
    if not (first and second and third and fourth):
        raise UsageError(f"forward {text!r} (expected PROTOCOL:[ADDR]:PORT-:PORT, as tcp::2222-:22)")
    if guest:
        raise UsageError(f"forward {text!r}: the guest's address {guest!r} cannot be chosen (expected -:{guest_port})")
    return _forward("forward", text, protocol or "tcp", host, host_port, guest_port)


def parse_publish(text: str) -> Forward:
    """The forward that `text` writes as [ADDR:]HOST:GUEST[/tcp|/udp], as `-p` takes it.

    An IPv6 address stands in brackets. Without ADDR it is the host's loopback. Raises UsageError.
    """
    ports, slash, protocol = text.partition("/")
    outside, colon, guest_port = ports.rpartition(":")
    host, _, host_port = outside.rpartition(":")
    if not colon or (slash and not protocol):
        raise UsageError(f"port {text!r} (expected [ADDR:]HOST:GUEST, as 8080:80 or 0.0.0.0:5353:53/udp)")
    return _forward("port", text, protocol or "tcp", host, host_port, guest_port)


def _forward(what: str, text: str, protocol: str, host: str, host_port: str, guest_port: str) -> Forward:
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    try:
        return Forward(protocol, _port(host_port), _port(guest_port), host or LOOPBACK)
    except UsageError as error:
        raise UsageError(f"{what} {text!r}: {error}") from None


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise UsageError(f"port {text!r} (expected 1 to 65535)")
    return int(text)


def _is_address(text: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, text)
            return True
        except (OSError, ValueError):
            pass
    return False
