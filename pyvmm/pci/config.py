"""A PCI function: its configuration space (type 0), the windows behind its base address registers, its capabilities.

Imports spec and state. After PCI Local Bus Specification 3.0, chapter 6. Everything here happens under `lock`, which
whoever passes accesses on holds; it is the lock of the device that the function belongs to.
"""

from __future__ import annotations

from threading import Lock

from pyvmm.pci.spec import (
    BASE_ADDRESS_0,
    CACHE_LINE_SIZE,
    CAPABILITY_LIST,
    CLASS_PROG,
    COMMAND,
    COMMAND_INTX_DISABLE,
    COMMAND_MASTER,
    COMMAND_MEMORY,
    CONFIG_LENGTH,
    DEVICE_ID,
    INTERRUPT_LINE,
    INTERRUPT_PIN,
    LATENCY_TIMER,
    REVISION_ID,
    STATUS,
    STATUS_CAP_LIST,
    STATUS_INTERRUPT,
    STD_HEADER_SIZEOF,
    STD_NUM_BARS,
    SUBSYSTEM_ID,
    SUBSYSTEM_VENDOR_ID,
    VENDOR_ID,
)
from pyvmm.state import Bytes, StateError, Stateful

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    class Window(Protocol):
        """What a base address register makes visible: a bus device of `length` bytes."""

        @property
        def name(self) -> str: ...

        @property
        def lock(self) -> Lock: ...

        @property
        def length(self) -> int: ...

        def read(self, offset: int, size: int) -> int: ...

        def write(self, offset: int, size: int, value: int) -> None: ...

    class Capability(Protocol):
        """What is behind an entry of the capability list; the list's two bytes are the function's."""

        def reading(self, start: int, end: int) -> None:
            """Bytes [start, end) of the capability are about to be read."""

        def written(self, start: int, end: int) -> None:
            """Bytes [start, end) have been written."""

    Decode = Callable[[int, int | None, int | None], None]


SMALLEST_WINDOW = 0x1000
"""A page, so that a guest can map each window by itself (6.2.5.1 recommends it)."""


class Function(Stateful):
    """One function of a device that has no others.

    name     what messages call it
    lock     held around every call, except on_decode()
    space    the 256 bytes as they are
    bars     the window behind each base address register, by its number; all are 32-bit memory
    commanded    is called when the command register may have changed
    """

    __slots__ = (
        "_capabilities",
        "_decoded",
        "_end",
        "_tail",
        "_told",
        "_writable",
        "bars",
        "commanded",
        "lock",
        "name",
        "space",
    )

    STATE = {"space": Bytes(CONFIG_LENGTH)}

    def __init__(
        self,
        name: str,
        vendor: int,
        device: int,
        class_code: int,
        revision: int = 0,
        subsystem: tuple[int, int] = (0, 0),
        *,
        pin: int = 0,
        lock: Lock | None = None,
    ) -> None:
        """`class_code` is class, subclass and interface, `subsystem` vendor and id, `pin` 1 for INTA# or 0."""
        self.name = name
        self.lock = lock or Lock()
        self.space = bytearray(CONFIG_LENGTH)
        self.bars: dict[int, Window] = {}
        self.commanded: Callable[[], None] = lambda: None
        self._writable = bytearray(CONFIG_LENGTH)
        self._capabilities: list[tuple[int, int, Capability]] = []
        self._decoded: dict[int, int] = {}
        self._told: Decode | None = None
        self._tail = CAPABILITY_LIST  # the pointer to the next capability
        self._end = STD_HEADER_SIZEOF
        for offset, size, value, writable in (
            (VENDOR_ID, 2, vendor, 0),
            (DEVICE_ID, 2, device, 0),
            (COMMAND, 2, 0, COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE),
            (REVISION_ID, 1, revision, 0),
            (CLASS_PROG, 3, class_code, 0),
            (CACHE_LINE_SIZE, 1, 0, 0xFF),
            (LATENCY_TIMER, 1, 0, 0xFF),
            (SUBSYSTEM_VENDOR_ID, 2, subsystem[0], 0),
            (SUBSYSTEM_ID, 2, subsystem[1], 0),
            (INTERRUPT_LINE, 1, 0, 0xFF),
            (INTERRUPT_PIN, 1, pin, 0),
        ):
            self._field(offset, value.to_bytes(size, "little"), writable.to_bytes(size, "little"))

    def _field(self, offset: int, value: bytes, writable: bytes) -> None:
        self.space[offset : offset + len(value)] = value
        self._writable[offset : offset + len(writable)] = writable

    def restore(self, state: Any) -> None:
        """Raises StateError for the configuration space of another function too."""
        before = bytes(self.space)
        super().restore(state)
        own = bytearray(0xFF & ~mask for mask in self._writable)
        own[STATUS] &= ~STATUS_INTERRUPT
        if any((now ^ then) & mask for now, then, mask in zip(self.space, before, own, strict=True)):
            self.space[:] = before
            raise StateError(f"{self.name}: its configuration space is another function's")

    def decode(self) -> None:
        """It has been restored: let its windows be where they were."""
        self._decode()

    # --- Being made ---------------------------------------------------------------------------------------------------

    def add_bar(self, bar: int, window: Window) -> None:
        """Put `window` behind base address register `bar`. Raises ValueError for what no BAR can hold."""
        length = window.length
        if not 0 <= bar < STD_NUM_BARS or bar in self.bars or length < SMALLEST_WINDOW or length & (length - 1):
            raise ValueError(f"{self.name}: no window of {length:#x} bytes can be behind BAR {bar}")
        self.bars[bar] = window
        self._field(BASE_ADDRESS_0 + 4 * bar, bytes(4), (-length & 0xFFFFFFFF).to_bytes(4, "little"))

    def add_capability(self, kind: int, body: bytes, writable: bytes = b"", behind: Capability | None = None) -> int:
        """Append a capability of id `kind`; returns where it is.

        `body` is what follows the list's two bytes, `writable` the bits of it that a driver may write, and
        `behind` is told of accesses. Raises ValueError when there is no room.
        """
        at, end = self._end, self._end + 2 + len(body)
        if end > CONFIG_LENGTH:
            raise ValueError(f"{self.name}: no room for another capability")
        self._field(at, bytes((kind, 0)) + body, bytes(2) + writable)
        self.space[self._tail] = at
        self.space[STATUS] |= STATUS_CAP_LIST
        self._tail, self._end = at + 1, (end + 3) & ~3  # 6.7: capabilities are dword aligned
        if behind is not None:
            self._capabilities.append((at, end, behind))
        return at

    # --- Accesses -----------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """`size` bytes of the configuration space at `offset`, all within one dword."""
        for start, end, capability in self._capabilities:
            if offset < end and start < offset + size:
                capability.reading(offset - start, offset - start + size)
        return int.from_bytes(self.space[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Write `value`, `size` bytes wide, to the configuration space at `offset`, all within one dword."""
        for at in range(offset, offset + size):
            if mask := self._writable[at]:  # others may be set from elsewhere meanwhile: show_interrupt()
                self.space[at] = self.space[at] & ~mask | value & mask
            value >>= 8
        if offset >= STD_HEADER_SIZEOF:
            for start, end, capability in self._capabilities:
                if offset < end and start < offset + size:
                    capability.written(offset - start, offset - start + size)
        elif offset < BASE_ADDRESS_0 + 4 * STD_NUM_BARS:
            self.commanded()
            self._decode()

    @property
    def command(self) -> int:
        """The command register (6.2.2)."""
        return int.from_bytes(self.space[COMMAND : COMMAND + 2], "little")

    def show_interrupt(self, asserted: bool) -> None:
        """The interrupt status bit (6.2.3). Any thread, but one at a time."""
        self.space[STATUS] = self.space[STATUS] & ~STATUS_INTERRUPT | (STATUS_INTERRUPT if asserted else 0)

    # --- What firmware does -------------------------------------------------------------------------------------------

    def place(self, bar: int, gpa: int) -> None:
        """Have `bar` point to `gpa`."""
        self.write(BASE_ADDRESS_0 + 4 * bar, 4, gpa)

    def enable(self) -> None:
        """Let the function decode memory accesses, and reach memory itself."""
        self.write(COMMAND, 2, self.command | COMMAND_MEMORY | COMMAND_MASTER)

    def set_interrupt_line(self, line: int) -> None:
        """Note which input of the interrupt controller the function's pin leads to; nothing here needs it."""
        self.write(INTERRUPT_LINE, 1, line)

    # --- Decoding (6.2.5.1) -------------------------------------------------------------------------------------------

    def ranges(self) -> dict[int, int]:
        """The gpa of each window that the function answers for now, by the number of its BAR."""
        return dict(self._decoded)

    def on_decode(self, told: Decode) -> None:
        """Have `told(bar, old gpa or None, new gpa or None)` called for each window that comes, moves or goes.

        It is called now for those that are there already, later under `lock`.
        """
        self._told = told
        for bar, gpa in self._decoded.items():
            told(bar, None, gpa)

    def _decode(self) -> None:
        """Tell of what has changed: with one write that is one window, or all of them come or go."""
        wanted = {bar: gpa for bar in self.bars if (gpa := self._base(bar)) is not None}
        before, self._decoded = self._decoded, wanted
        for bar in self.bars:
            old, new = before.get(bar), wanted.get(bar)
            if old != new and self._told is not None:
                self._told(bar, old, new)

    def _base(self, bar: int) -> int | None:
        """Where the window of `bar` is, or None while it is nowhere: not enabled, at 0, or being sized."""
        if not self.command & COMMAND_MEMORY:
            return None
        at = BASE_ADDRESS_0 + 4 * bar
        base = int.from_bytes(self.space[at : at + 4], "little")
        return base if base not in (0, -self.bars[bar].length & 0xFFFFFFFF) else None
