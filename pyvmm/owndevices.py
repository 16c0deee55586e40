"""Bases for devices of a program's own: a class, two methods, and one line that attaches it to a VM.

Imports state. A device is called under its lock, on a vCPU's thread; what it raises ends the run with reason "error".
"""

from __future__ import annotations

from threading import Lock

from pyvmm.state import Stateful

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from pyvmm.events import IrqLine
    from pyvmm.memory import GuestMemory


class OwnDevice(Stateful):
    """What `PortDevice` and `MmioDevice` have in common.

    name     what messages call it; by default the class's name
    length   how many ports, or bytes, it answers for
    lock     held around `read` and `write`; a thread that sets `irq` from elsewhere takes it as well
    irq      its interrupt line, a level: `irq.set(True)`, `irq.set(False)`; None unless attached with one
    memory   the guest's RAM, once attached
    STATE    which attributes a snapshot has, each with its kind (see `pyvmm.state`); None: there can be no snapshot.
             In a VM that is restored, a device of the same name is attached before the start. It then has these
             attributes, and `restored()` is called, which sees to `irq`
    """

    name = ""
    length = 1
    lock: Lock
    irq: IrqLine | None = None
    memory: GuestMemory | None = None

    def __new__(cls, *_: Any, **__: Any) -> Self:
        # Not in __init__, which a subclass may have without calling this one.
        self = super().__new__(cls)
        self.lock = Lock()
        self.name = self.name or cls.__name__
        return self

    def read(self, offset: int, size: int) -> int:
        """What the guest reads: `size` bytes (1, 2, 4 or 8; fewer where an access crosses a page) at `offset` from
        where the device begins. The value is below 256**size.
        """
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest writes `value`, `size` bytes wide, at `offset`."""

    def close(self) -> None:
        """The VM is closed; nobody calls the device any more."""


class PortDevice(OwnDevice):
    """A device at I/O ports, one unless `length` says more: `vm.attach(MyDevice(), port=0x500)`."""


class MmioDevice(OwnDevice):
    """A device with registers in memory, a page of them unless `length` says otherwise:
    `vm.attach(MyDevice(), gpa=0xd800_0000)`.
    """

    length = 4096
