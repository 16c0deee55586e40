"""The transport over PCI: configuration space, windows that move, messages. Behind it is the engine's device."""

from __future__ import annotations

from pyvmm.pci import bridge, config, decoder, msix
from pyvmm.virtio import pci, pcicap
from tests.fuzz.subjects.engine import Echo, Engine

MSIX, ACCESS = 0x40, 0x90
"""Where the capabilities are."""
COMMAND = 4


def _space(offset, value, size=4):
    return ("pci write", "space", offset, size, value)


def _chain():
    return ("chain", 0, (b"ask",), (8,), "direct", (), True)


def _through(bar, offset, length, value=None):
    """An access by way of the configuration space."""
    chosen = (_space(ACCESS + 4, bar, 1), _space(ACCESS + 8, offset), _space(ACCESS + 12, length))
    return (*chosen, ("pci read", "space", ACCESS + 16, 4) if value is None else _space(ACCESS + 16, value))


class Pci(Engine):
    name = "pci"
    modules = (bridge, config, decoder, msix, pci, pcicap)
    everything = False
    transport = "pci"
    required = (
        *("BAR 0: read", "BAR 0: written", "BAR 1: read", "BAR 1: written", "space: read", "space: written"),
        *("port: read", "port: written", "port: the address", "port: not the address"),
        *("BAR 0: moved", "BAR 0: gone", "BAR 1: moved", "BAR 1: gone", "BAR 0: access across its end"),
        *("BAR by configuration space: read", "BAR by configuration space: written"),
        *("common: a register", "common: no register", "configuration: beyond its end"),
        *("notification: of a queue", "notification: of none", "vector: mapped", "vector: there is none"),
        *("table: an entry", "table: no entry", "pending bits: read", "pending bits: written"),
        *("message: kept", "message: none wanted", "status: refused", "status: given up", "features: refused"),
        *("echo: all", "echo: short", "echo: nothing to write to", "echo: kept"),
    )
    seeds = (
        (("pci write", "BAR 0", 22, 2, 2), *(("pci read", "BAR 0", 24 + 2 * field, 2) for field in range(4))),
        (("pci write", "BAR 0", 22, 2, 0xFFFF), *(("pci write", "BAR 0", 24 + 2 * field, 2, 1) for field in range(4))),
        (_space(COMMAND, 0), _chain(), _space(COMMAND, 6), _chain()),
        (_space(0x10, 0xFFFFFFFF), _space(0x10, 0xE0020000), _space(0x14, 0xE0020000), _space(0x10, 0xFEE00000)),
        (_space(MSIX, 0xC0000000), _chain(), _space(MSIX, 0x80000000), _space(MSIX, 0), _chain()),
        (
            ("pci write", "BAR 1", 28, 4, 1),
            _chain(),
            ("pci write", "BAR 1", 16, 8, 0),
            ("pci write", "BAR 1", 28, 4, 0),
        ),
        (("pci write", "BAR 1", 0x1000, 8, 0), ("pci read", "BAR 1", 0x1000, 4), ("pci read", "BAR 1", 0x1001, 2)),
        (("pci write", "BAR 0", 22, 2, 0), ("pci write", "BAR 0", 26, 2, 0xFFFF), _chain()),
        (("pci write", "BAR 0", 16, 2, 2), ("pci write", "BAR 0", 16, 2, 3), ("pci write", "BAR 0", 24, 2, 3)),
        (("pci read", "BAR 0", 0x3FFC, 8), ("pci read", "BAR 0", 0x2FFE, 4), ("pci write", "BAR 0", 0x3FF8, 4, 0)),
        (*_through(0, 20, 1, 0), *_through(0, 0x1000, 1), *_through(1, 12, 4, 1), *_through(7, 0, 4), _chain()),
        (*_through(0, 0x3000, 2, 0), *_through(0, 0xFFFFFFFF, 4), *_through(0, 0x3FFE, 4, 0), *_through(0, 0, 3)),
        (("pci write", "port", 3, 1, 1), ("pci write", "port", 0, 4, 0x80010000), ("pci read", "port", 4, 4)),
        (("pci write", "port", 5, 4, 0), ("pci read", "port", 7, 2), ("pci read", "port", 0, 4)),
    )

    def __init__(self, settings, kinds):
        self.kinds = kinds
        self.device = Echo()
        self.pin = settings["pin"]

    @staticmethod
    def settings(draw):
        return {"pin": draw.pick((False, False, True))}
