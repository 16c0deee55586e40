"""What a device leaves to the run loop in C: the actions, and how a device switches them as its state changes.

Imports nothing of pyvmm. A device declares an action beside a register (`Register.action`) and says through a `Window`
when it holds. The classes here do nothing with that: every access comes to Python. `pyvmm.kvm.hot` has those whose
windows the helper serves; a device cannot tell one from the other.

Only what no other device, no memory and no other register shows before Python has done it may be posted. What a vCPU
posts is done, in order, before anybody else takes the device's lock, before that vCPU's next exit is dispatched, before
a VM stands still, and within 10 ms.
"""

from __future__ import annotations

from threading import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Posting(Protocol):
        """A device whose writes may be posted."""

        def posted(self, offset: int, size: int, data: bytes) -> None:
            """Do writes of `size` bytes each at `offset`, `data` in a row. Called under the device's lock."""


POST = 1
"""A write is kept for later and the vCPU goes on at once."""
SHADOW = 2
"""A read gives the window's slot."""
CLEAR = 3
"""A write clears the bits that it has set in the window's slot."""
IGNORE = 4
"""A write vanishes, but is counted."""


class Window:
    """Some registers of a device, of one width, up to 8 bytes in all; and the slot, 32 bits that a register shows.

    `offset` and `length` are where they are in the device's range. `slot` may be read by any thread.
    """

    __slots__ = ("_changing", "_slot", "length", "offset", "width")

    def __init__(self, offset: int, length: int, width: int) -> None:
        self.offset = offset
        self.length = length
        self.width = width
        self._slot = 0
        self._changing = Lock()  # a leaf

    @property
    def slot(self) -> int:
        return self._slot

    def change(self, clear: int = 0, set: int = 0) -> None:
        """Clear bits of the slot, then set bits, in one: nobody sees it half done. Any thread."""
        with self._changing:
            self._slot = self._slot & ~clear | set

    def on_read(self, offset: int, action: int) -> None:
        """From now on reads at `offset` (of the device's range) are SHADOW, or come to Python: 0."""

    def on_write(self, offset: int, action: int) -> None:
        """From now on writes at `offset` are POST, CLEAR or IGNORE, or come to Python: 0.

        When they no longer are POST, all that was posted has been done on return. Under the device's lock.
        """


class Group:
    """Devices that share a lock, and whose posted writes keep their order among each other."""

    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = Lock()

    def window(self, device: Posting, offset: int, length: int, width: int) -> Window:
        """A window of `device`, one of the group."""
        return Window(offset, length, width)


class Places:
    """Where the windows are that are attached to one bus."""

    def add(self, base: int, window: Window) -> None:
        """The window begins at `base`. It overlaps no other."""

    def remove(self, base: int) -> None:
        """No longer; nothing happens if there is no window."""

    def ignored(self) -> int:
        """How many writes were ignored."""
        return 0


class Hot:
    """Makes groups and windows: one of these a VM."""

    def __init__(self) -> None:
        self.ports = Places()
        self.mmio = Places()

    def group(self) -> Group:
        """For devices whose writes may be posted."""
        return Group()

    def window(self, offset: int, length: int, width: int) -> Window:
        """For a device none of whose writes are."""
        return Window(offset, length, width)

    def drain(self) -> None:
        """Do what has been posted. Any thread that holds no device's lock."""

    def close(self) -> None:
        """No vCPU runs any more."""
