"""Which received frames a network device's driver wants, and the commands by which it says so (virtio 1.3, 5.1.6.5).

Imports spec and state. A frame is judged by its destination address alone.
"""

from __future__ import annotations

from pyvmm.state import FLAG, Bytes, Maybe, Several, Stateful
from pyvmm.virtio.spec import (
    NET_CTRL_MAC,
    NET_CTRL_MAC_ADDR_SET,
    NET_CTRL_MAC_TABLE_SET,
    NET_CTRL_RX,
    NET_CTRL_RX_ALLMULTI,
    NET_CTRL_RX_ALLUNI,
    NET_CTRL_RX_NOBCAST,
    NET_CTRL_RX_NOMULTI,
    NET_CTRL_RX_NOUNI,
    NET_CTRL_RX_PROMISC,
    NET_F_CTRL_MAC_ADDR,
    NET_F_CTRL_RX,
    NET_F_CTRL_RX_EXTRA,
)

MAC = 6
BROADCAST = b"\xff" * MAC
TABLE_LIMIT = 256
"""Addresses kept in each table; with more, every address of that kind is let in, which 5.1.6.5.2 allows."""
ADDRESS = Bytes(MAC, container=bytes)
COMMAND_LIMIT = 2 + 2 * 4 + MAC * (1 << 14)
"""Bytes of the longest command that is read; a longer one is refused."""

_MODES = {
    NET_CTRL_RX_PROMISC: (NET_F_CTRL_RX, "promiscuous"),
    NET_CTRL_RX_ALLMULTI: (NET_F_CTRL_RX, "all_multicast"),
    NET_CTRL_RX_ALLUNI: (NET_F_CTRL_RX_EXTRA, "all_unicast"),
    NET_CTRL_RX_NOMULTI: (NET_F_CTRL_RX_EXTRA, "no_multicast"),
    NET_CTRL_RX_NOUNI: (NET_F_CTRL_RX_EXTRA, "no_unicast"),
    NET_CTRL_RX_NOBCAST: (NET_F_CTRL_RX_EXTRA, "no_broadcast"),
}
"""Each command of the class RX: the feature it needs, and what it switches (5.1.6.5.1)."""


class ReceiveFilter(Stateful):
    """The filter of one device whose address is `mac`; everything is let in until the driver asks for less.

    5.1.6.5.1.1, 5.1.6.5.2.1. Promiscuous mode goes before all other modes, the suppressing modes before the others.
    """

    __slots__ = (
        "_multicast",
        "_unicast",
        "all_multicast",
        "all_unicast",
        "mac",
        "no_broadcast",
        "no_multicast",
        "no_unicast",
        "promiscuous",
    )

    STATE = {
        "mac": ADDRESS,
        "promiscuous": FLAG,
        **dict.fromkeys(("all_multicast", "all_unicast", "no_broadcast", "no_multicast", "no_unicast"), FLAG),
        **dict.fromkeys(("_multicast", "_unicast"), Maybe(Several(ADDRESS, TABLE_LIMIT, container=frozenset))),
    }
    name = "filter"

    def __init__(self, mac: bytes) -> None:
        self.mac = mac
        self.promiscuous = True
        self.all_multicast = self.all_unicast = False
        self.no_multicast = self.no_unicast = self.no_broadcast = False
        self._unicast: frozenset[bytes] | None = frozenset()  # None: too many to keep
        self._multicast: frozenset[bytes] | None = frozenset()

    def accepts(self, destination: bytes) -> bool:
        """Whether the driver wants a frame to `destination`, 6 bytes."""
        if self.promiscuous:
            return True
        if destination == BROADCAST:
            return not self.no_broadcast
        if destination[0] & 1:
            known, everything, nothing = self._multicast, self.all_multicast, self.no_multicast
        elif destination == self.mac:
            return not self.no_unicast
        else:
            known, everything, nothing = self._unicast, self.all_unicast, self.no_unicast
        return not nothing and (everything or known is None or destination in known)

    def command(self, command: bytes, features: int) -> bool:
        """Do what `command` (class, command and data, as the driver wrote them) asks for.

        False, and nothing has changed, for what is not known, not negotiated or malformed.
        """
        if len(command) < 2 or len(command) > COMMAND_LIMIT:
            return False
        kind, number, data = command[0], command[1], command[2:]
        if kind == NET_CTRL_RX:
            feature, mode = _MODES.get(number, (0, ""))
            if not mode or not features >> feature & 1 or len(data) != 1 or data[0] > 1:
                return False
            setattr(self, mode, bool(data[0]))
            return True
        if kind == NET_CTRL_MAC and number == NET_CTRL_MAC_TABLE_SET and features >> NET_F_CTRL_RX & 1:
            return self._set_tables(data)
        if kind == NET_CTRL_MAC and number == NET_CTRL_MAC_ADDR_SET and features >> NET_F_CTRL_MAC_ADDR & 1:
            if len(data) != MAC or data[0] & 1:
                return False
            self.mac = data
            return True
        return False

    def _set_tables(self, data: bytes) -> bool:
        """Two tables, each a count (le32) and so many addresses, of stations and of groups."""
        tables = []
        for _ in range(2):
            end = 4 + MAC * int.from_bytes(data[:4], "little")
            if len(data) < end:
                return False
            addresses = [data[at : at + MAC] for at in range(4, end, MAC)]
            tables.append(frozenset(addresses) if len(addresses) <= TABLE_LIMIT else None)
            data = data[end:]
        if data:
            return False
        self._unicast, self._multicast = tables
        return True
