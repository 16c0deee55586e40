"""What the run loop in C has dealt with by itself, from its log: a vCPU's history, and what observers are told.

Imports the compiled module (through native.py) and exits; vcpu.py alone imports this.
"""

from __future__ import annotations

from pyvmm.kvm.exits import Exit, Mmio, Pio
from pyvmm.kvm.native import constant

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from pyvmm._native import _kvm

    Tell = Callable[[Exit, int, int], None]
    """tell(exit, tsc, rip): an access as an exit, the processor's time stamp and, if it is known, RIP; else 0."""

_LOG = constant("PYVMM_LOG")
_PORTS = constant("PYVMM_PORT_WRITE"), constant("PYVMM_PORT_READ")
_WRITES = constant("PYVMM_PORT_WRITE"), constant("PYVMM_MMIO_WRITE")


def _exit(access: Any) -> Exit:
    """The exit that Python would have seen; of a string's elements the log has those in the first 8 bytes."""
    data = access.value.to_bytes(8, "little")[: access.size * access.count]
    is_write = access.kind in _WRITES
    if access.kind in _PORTS:
        return Pio(access.address, access.size, access.count, is_write, data)
    return Mmio(access.address, access.size, is_write, data)


def merged(context: _kvm.pyvmm_vcpu, seen: Sequence[Exit], limit: int) -> list[Exit]:
    """The last `limit` exits and accesses of a vCPU, oldest first; `seen` are the last exits that Python saw."""
    newest: list[Exit] = []
    left = list(seen)
    logged = context.logged
    for number in range(logged - 1, max(logged - _LOG, 0) - 1, -1):
        access = context.log[number % _LOG]
        if not access.seen:
            newest.append(_exit(access))
        elif left:
            newest.append(left.pop())
    newest += reversed(left)
    return newest[limit - 1 :: -1] if len(newest) > limit else newest[::-1]


def untold(context: _kvm.pyvmm_vcpu) -> Iterator[tuple[Exit, int, int]]:
    """The accesses that nobody was told of so far, oldest first, as `Tell` has them. For the vCPU's own thread."""
    while context.told != context.logged:
        access = context.log[context.told % _LOG]
        context.told = (context.told + 1) % (1 << 32)
        if not access.seen:
            yield _exit(access), access.tsc, access.rip
