"""Doorbells that go where the guest puts them: ioeventfds of a device whose registers may move.

Imports constants. KVM API, 4.59.
"""

from __future__ import annotations

from threading import Lock

from pyvmm.kvm.constants import KVM_CAP_IOEVENTFD_ANY_LENGTH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    class Wiring(Protocol):
        """What this asks of a VM; `pyvmm.kvm.vm.VmFd` has it."""

        def check_extension(self, capability: int) -> int: ...

        def ioeventfd(self, fd: int, address: int, length: int) -> None: ...

        def ioeventfd_remove(self, fd: int, address: int, length: int) -> None: ...


ANY_LENGTH, WORD = 0, 2
"""A driver notifies by a write of two bytes (virtio 1.3, 4.1.5.2). Where KVM takes no doorbell of any width, it gets
one of these, and other writes leave it as ever."""


class MovingDoorbells:
    """The doorbells of one device, by their numbers: eventfds at offsets into a range of registers that moves.

    KVM gets a doorbell when it has been rung the first time, not before. Taking one back costs some milliseconds, and
    kernels switch a device's registers off and on to measure them long before they use the device.
    """

    __slots__ = ("_bells", "_gpa", "_known", "_length", "_lock", "_vm")

    def __init__(self, vm: Wiring, bells: Iterable[tuple[int, int]]) -> None:
        """`bells` has (eventfd, offset in bytes) of each. The registers are nowhere yet. Raises KvmError."""
        self._vm = vm
        self._bells = list(bells)
        self._length = ANY_LENGTH if vm.check_extension(KVM_CAP_IOEVENTFD_ANY_LENGTH) else WORD
        self._lock = Lock()
        self._gpa: int | None = None
        self._known: set[int] = set()

    def move(self, gpa: int | None) -> None:
        """The registers are at `gpa` now, or nowhere (None). Any thread. Raises KvmError."""
        with self._lock:
            if gpa == self._gpa:
                return
            for number in self._known:
                fd, offset = self._bells[number]
                assert self._gpa is not None
                self._vm.ioeventfd_remove(fd, self._gpa + offset, self._length)
            self._known.clear()
            self._gpa = gpa

    def rung(self, number: int) -> None:
        """Doorbell `number` was rung, and that left KVM: let it not, from now on. Any thread. Raises KvmError."""
        with self._lock:
            if self._gpa is None or number in self._known:
                return
            fd, offset = self._bells[number]
            self._vm.ioeventfd(fd, self._gpa + offset, self._length)
            self._known.add(number)
