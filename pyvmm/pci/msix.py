"""MSI-X: a function's interrupts as messages, each with an address, data and a mask bit that the guest sets.

Imports spec and state. After PCI Local Bus Specification 3.0, 6.8.2. The table and the pending bits are a window, a
page each; the capability says where they are. Who carries messages to the interrupt controllers is injected.

The guest changes things under the device's lock, while whoever serves queues fires: what both need is under `leaf`.
"""

from __future__ import annotations

from struct import pack, unpack_from

from pyvmm.pci.spec import (
    CAP_ID_MSIX,
    MSIX_ENTRY_CTRL_MASKBIT,
    MSIX_ENTRY_SIZE,
    MSIX_ENTRY_VECTOR_CTRL,
    MSIX_FLAGS,
    MSIX_FLAGS_ENABLE,
    MSIX_FLAGS_MASKALL,
)
from pyvmm.state import Bytes, Number, StateError, Stateful

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Lock
    from typing import Protocol

    from pyvmm.pci.config import Function

    class MsixWires(Protocol):
        """Carries the messages of one function."""

        def route(self, vector: int, address: int, data: int) -> None:
            """From now on `vector` is the message of `data` to `address`, which is an interrupt (see MESSAGES).

            The device's lock is held, so there is one call at a time; nothing is signalled for `vector` meanwhile.
            """

        def unroute(self, vector: int) -> None:
            """Nothing is signalled for `vector` until it is routed again."""

        def signal(self, vector: int) -> None:
            """Send the message of `vector`. Any thread, a leaf lock held: it may not block."""


PAGE = 0x1000
LARGEST = PAGE // MSIX_ENTRY_SIZE
"""Entries that the table's page has room for; the standard's limit is 2048."""
MESSAGES = 0xFEE
"""The upper 12 of 32 address bits of an interrupt message (Intel SDM volume 3A, 11.11.1); other messages get lost."""
_MASKS = {0: 0xFFFFFFFC, 4: 0xFFFFFFFF, 8: 0xFFFFFFFF, 12: MSIX_ENTRY_CTRL_MASKBIT}
"""What each dword of an entry keeps; the two low bits of the address are zero (6.8.2.6)."""


class Msix(Stateful):
    """The MSI-X of `function`, with `count` vectors: the window behind `bar`, and what is behind the capability.

    enabled    whether the function sends messages instead of using its pin: changes under `leaf`
    switched   is called when that has changed, under the device's lock
    """

    __slots__ = (
        "_at",
        "_function",
        "_leaf",
        "_open",
        "_pending",
        "_routed",
        "_table",
        "_wires",
        "count",
        "enabled",
        "length",
        "lock",
        "name",
        "switched",
    )

    STATE = {"_table": Bytes(limit=PAGE), "_pending": Number((1 << LARGEST) - 1)}

    def __init__(self, function: Function, bar: int, count: int, wires: MsixWires, leaf: Lock) -> None:
        """Adds both to `function`. Raises ValueError: no vector, more than LARGEST, or no room."""
        if not 0 < count <= LARGEST:
            raise ValueError(f"{function.name}: {count} MSI-X vectors (expected 1 to {LARGEST})")
        self.name = f"{function.name} MSI-X"
        self.lock = function.lock
        self.length = 2 * PAGE
        self.count = count
        self.enabled = False
        self.switched: Callable[[], None] = lambda: None
        self._function = function
        self._leaf = leaf
        self._wires = wires
        self._table = bytearray(MSIX_ENTRY_SIZE * count)
        self._routed: dict[int, tuple[int, int]] = {}
        self._open = [False] * count  # those whose messages are sent and not kept: under `leaf`
        self._pending = 0  # a bit each of those kept: under `leaf`
        for vector in range(count):  # 6.8.2.9: masked at first
            self._table[MSIX_ENTRY_SIZE * vector + MSIX_ENTRY_VECTOR_CTRL] = MSIX_ENTRY_CTRL_MASKBIT
        function.add_bar(bar, self)
        body = pack("<HII", count - 1, bar, PAGE | bar)
        writable = pack("<HII", MSIX_FLAGS_ENABLE | MSIX_FLAGS_MASKALL, 0, 0)
        self._at = function.add_capability(CAP_ID_MSIX, body, writable, self)

    def fire(self, vector: int) -> None:
        """Send the message of `vector`, or keep it while it is masked. Any thread; `leaf` is held."""
        if self._open[vector]:
            self._wires.signal(vector)
        else:
            self._pending |= 1 << vector

    def forget(self) -> None:
        """Drop the messages that were kept. `leaf` is held."""
        self._pending = 0

    def restored(self) -> None:
        """`function` has been restored before: see to enabling, masks and routes. Messages that were kept may come."""
        if len(self._table) != MSIX_ENTRY_SIZE * self.count or self._pending >> self.count:
            raise StateError(f"{self.name}: its table is another one's (expected {self.count} vectors)")
        pending = self._pending
        self.written(0, 0)
        if self.enabled:
            with self._leaf:
                for vector in range(self.count):
                    if pending >> vector & 1:
                        self.fire(vector)

    # --- The capability -----------------------------------------------------------------------------------------------

    def reading(self, start: int, end: int) -> None:
        """The function's configuration space has what is to be read."""

    def written(self, start: int, end: int) -> None:
        """Message control may be another (6.8.2.3)."""
        enabled = bool(self._control & MSIX_FLAGS_ENABLE)
        switched = enabled != self.enabled
        with self._leaf:
            self.enabled = enabled
            if not enabled:
                self._open = [False] * self.count
                self._pending = 0
        if not enabled:
            routed, self._routed = self._routed, {}
            for vector in routed:
                self._wires.unroute(vector)
        for vector in range(self.count):
            self._settle(vector)
        if switched:
            self.switched()

    @property
    def _control(self) -> int:
        at = self._at + MSIX_FLAGS
        return int.from_bytes(self._function.space[at : at + 2], "little")

    def _settle(self, vector: int) -> None:
        """Have `vector` send messages, or keep them, as its mask, the function's and the table say."""
        low, high, data, control = unpack_from("<IIII", self._table, MSIX_ENTRY_SIZE * vector)
        masked = self._control & MSIX_FLAGS_MASKALL or control & MSIX_ENTRY_CTRL_MASKBIT
        opened = self.enabled and not masked and low >> 20 == MESSAGES and not high
        if opened and self._routed.get(vector) != (low, data):
            with self._leaf:
                self._open[vector] = False
            self._routed[vector] = low, data
            self._wires.route(vector, low, data)
        with self._leaf:
            self._open[vector] = opened
            if opened and self._pending >> vector & 1:
                self._pending &= ~(1 << vector)
                self._wires.signal(vector)

    # --- The window: the bus holds `lock` -----------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """The bus's read: aligned, of 4 or 8 bytes (6.8.2); any other gives 0, as does what is no entry."""
        if size not in (4, 8) or offset % size:
            return 0
        if offset >= PAGE:
            return self._pending >> 8 * (offset - PAGE) & (1 << 8 * size) - 1
        return int.from_bytes(self._table[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """The bus's write: an entry of the table; takes effect with its last dword."""
        if size not in (4, 8) or offset % size or offset >= len(self._table):
            return
        for at in range(offset, offset + size, 4):
            kept = value & _MASKS[at % MSIX_ENTRY_SIZE]
            self._table[at : at + 4] = kept.to_bytes(4, "little")
            value >>= 32
            if at % MSIX_ENTRY_SIZE == MSIX_ENTRY_VECTOR_CTRL:
                self._settle(at // MSIX_ENTRY_SIZE)
