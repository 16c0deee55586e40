"""The bus: which device answers at which port or guest-physical address. The only dispatcher there is.

Imports errors and hot. A VM has two, one for ports (PIO, 64 KiB) and one for memory-mapped registers (MMIO). An access
must lie wholly inside one attached range; anything else is unclaimed: reads give all ones, as a floating PC bus
does, writes vanish, and both are counted.
"""

from __future__ import annotations

from bisect import bisect_right
from threading import Lock, RLock

from pyvmm.errors import BusConflictError
from pyvmm.hot import IGNORE, Places, Window

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Protocol

    class DeviceLock(Protocol):
        """A threading.Lock, or what does as it does."""

        def acquire(self) -> bool: ...

        def release(self) -> None: ...

        def __enter__(self) -> bool: ...

        def __exit__(self, *raised: Any) -> None: ...

    class BusDevice(Protocol):
        """What the bus asks of a device. `lock` is held around every call; neither call may block or raise.

        A device that leaves accesses to the run loop in C has a `window` too (`pyvmm.hot`).
        Sizes are 1, 2, 4 or 8, and any other below 8 where KVM hands out a page-crossing access in two parts.
        """

        @property
        def name(self) -> str: ...

        @property
        def lock(self) -> DeviceLock: ...

        def read(self, offset: int, size: int) -> int:
            """The value (below 256**size) of `size` bytes at `offset` from the range's base."""

        def write(self, offset: int, size: int, value: int) -> None:
            """Store `value`, `size` bytes wide, at `offset` from the range's base."""


PORTS = 1 << 16
"""Size of the I/O address space (Intel SDM volume 1, 19.3)."""

_making = RLock()
"""Held while a device is made. It is a leaf but for the buses' own."""


class Later:
    """Stands on a bus for the device `name`, which `make()` makes when the guest, or who looks at the bus, asks for it.

    A guest uses few of the devices that a PC has, and what makes them takes milliseconds to import.
    """

    __slots__ = ("_device", "_make", "_placed", "lock", "name")

    def __init__(self, name: str, make: Callable[[], BusDevice]) -> None:
        self.name = name
        self.lock = Lock()
        self._make = make
        self._device: BusDevice | None = None
        self._placed: list[Callable[[BusDevice], None]] = []

    def get(self) -> Any:
        """The device. Any thread."""
        if self._device is None:
            with _making:
                if self._device is None:
                    self._device = device = self._make()
                    for place in self._placed:
                        place(device)
        return self._device

    @property
    def made(self) -> BusDevice | None:
        """The device, if it has been made."""
        return self._device

    def when_made(self, place: Callable[[BusDevice], None]) -> None:
        """Have `place(device)` called when it is made; for a bus."""
        with _making:
            if self._device is None:
                self._placed.append(place)
            else:
                place(self._device)

    def read(self, offset: int, size: int) -> int:
        """What the guest's first access reads."""
        device: BusDevice = self.get()
        with device.lock:
            return device.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest's first access."""
        device: BusDevice = self.get()
        with device.lock:
            device.write(offset, size, value)


# Where one attached range starts, where it ends (exclusive), and who answers.
Range = tuple[int, int, "BusDevice"]


class Bus:
    """Dispatches accesses to the devices attached. Everything from any thread, also while devices come and go.

    An access that has found its device just before that is detached still reaches it.
    """

    __slots__ = (
        "_changing",
        "_ignoring",
        "_near",
        "_places",
        "_table",
        "_unclaimed",
        "changed",
        "limit",
        "name",
        "unclaimed_reads",
    )

    def __init__(self, name: str, limit: int, places: Places | None = None) -> None:
        """A bus called `name` in messages, with addresses from 0 up to but excluding `limit`.

        `places` is told where the windows of its devices are.
        """
        self.name = name
        self.limit = limit
        self.unclaimed_reads = 0
        self.changed: Callable[[int, int, BusDevice | None], None] | None = None
        """Is told (base, length, device) of what was attached, and (base, 0, None) of what was detached."""
        self._unclaimed = 0
        self._places = places or Places()
        self._ignoring: dict[int, Window] = {}
        self._changing = Lock()
        # Bases and ranges, ordered. Neither list ever changes: a search without a lock needs both as they were made.
        self._table: tuple[list[int], list[Range]] = ([], [])
        # Addresses seen before, with their range: a dict hit costs a third of a search.
        self._near: dict[int, Range] = {}

    @property
    def unclaimed_writes(self) -> int:
        """How many writes no device answered."""
        return self._unclaimed + self._places.ignored()

    def ignore(self, address: int, window: Window) -> None:
        """Writes of a byte to `address`, which `window` stands for, have just to be counted while nobody claims it."""
        window.on_write(0, IGNORE)
        with self._changing:
            self._ignoring[address] = window
            self._place_ignored()

    def attach(self, base: int, length: int, device: BusDevice) -> None:
        """Let `device` answer for `length` bytes from `base`.

        Raises BusConflictError on an empty range, one beyond the bus, or one that overlaps another.
        """
        end = base + length
        if length <= 0 or base < 0 or end > self.limit:
            raise BusConflictError(f"{device.name}: {base:#x}+{length:#x} does not fit the {self.name} bus")
        with self._changing:
            bases, ranges = self._table
            at = bisect_right(bases, base)
            for start, stop, other in ranges[max(at - 1, 0) : at + 1]:
                if base < stop and start < end:
                    raise BusConflictError(
                        f"{device.name} at {base:#x}-{end - 1:#x} overlaps {other.name} at {start:#x}-{stop - 1:#x} "
                        f"on the {self.name} bus"
                    )
            self._replace([*bases[:at], base, *bases[at:]], [*ranges[:at], (base, end, device), *ranges[at:]])
            self._place_ignored()
            self._place(base, device)
        if self.changed is not None:
            self.changed(base, length, device)
        if isinstance(device, Later):
            device.when_made(lambda made: self._exchange(base, device, made))

    def _place(self, base: int, device: BusDevice) -> None:
        window = getattr(device, "window", None)
        if isinstance(window, Window):
            self._places.add(base + window.offset, window)

    def _exchange(self, base: int, later: Later, device: BusDevice) -> None:
        with self._changing:
            bases, ranges = self._table
            at = bisect_right(bases, base) - 1
            if at >= 0 and ranges[at][2] is later:
                self._replace(bases, [*ranges[:at], (base, ranges[at][1], device), *ranges[at + 1 :]])
                self._place(base, device)

    def detach(self, base: int) -> None:
        """Remove the range that starts at `base`; KeyError if none does."""
        with self._changing:
            bases, ranges = self._table
            at = bisect_right(bases, base) - 1
            if at < 0 or bases[at] != base:
                raise KeyError(f"nothing is attached at {base:#x} on the {self.name} bus")
            window = getattr(ranges[at][2], "window", None)
            if isinstance(window, Window):
                self._places.remove(base + window.offset)
            self._replace(bases[:at] + bases[at + 1 :], ranges[:at] + ranges[at + 1 :])
            self._place_ignored()
        if self.changed is not None:
            self.changed(base, 0, None)

    def _replace(self, bases: list[int], ranges: list[Range]) -> None:
        # In this order: `find` takes them in the other one, so no range of an older table gets into a newer dict.
        self._table = bases, ranges
        self._near = {}

    def _place_ignored(self) -> None:
        for address, window in self._ignoring.items():
            if self.find(address, 1) is None:
                self._places.add(address, window)
            else:
                self._places.remove(address)

    def ranges(self) -> Iterator[tuple[int, int, BusDevice]]:
        """All attached ranges as (base, length, device), by address."""
        for base, end, device in self._table[1]:
            yield base, end - base, device.get() if isinstance(device, Later) else device

    def placed(self) -> Iterator[tuple[int, int, BusDevice]]:
        """The same, but a device that has not been made yet is not made for it: a Later stands for it."""
        for base, end, device in self._table[1]:
            yield base, end - base, device

    def find(self, address: int, size: int) -> Range | None:
        """The range (base, end, device) that holds all `size` bytes at `address`, or None."""
        near = self._near
        found = near.get(address)
        if found is None:
            bases, ranges = self._table
            at = bisect_right(bases, address) - 1
            if at < 0:
                return None
            found = ranges[at]
            if address >= found[1]:
                return None
            # A guest chooses the addresses: without a bound it would choose how much memory this takes.
            if len(near) < 4096:
                near[address] = found
        return found if address + size <= found[1] else None

    def read(self, address: int, size: int) -> int:
        """What a guest reads: `size` bytes (1 to 8) at `address`, all ones where nobody answers."""
        found = self._near.get(address) or self.find(address, size)
        if found is None or address + size > found[1]:
            self.unclaimed_reads += 1
            return (1 << (size * 8)) - 1
        device = found[2]
        lock = device.lock
        lock.acquire()  # `with` takes twice as long, which is a tenth of what an exit costs
        try:
            return device.read(address - found[0], size)
        finally:
            lock.release()

    def write(self, address: int, size: int, value: int) -> None:
        """What a guest writes: `size` bytes (1 to 8) at `address`."""
        found = self._near.get(address) or self.find(address, size)
        if found is None or address + size > found[1]:
            self._unclaimed += 1
            return
        device = found[2]
        lock = device.lock
        lock.acquire()
        try:
            device.write(address - found[0], size, value)
        finally:
            lock.release()

    def read_string(self, port: int, size: int, count: int) -> bytes:
        """String input (INS): `count` reads of `size` bytes, all of the same port (SDM volume 2A, INS)."""
        return b"".join(self.read(port, size).to_bytes(size, "little") for _ in range(count))

    def write_string(self, port: int, size: int, data: bytes) -> None:
        """String output (OUTS): `data` in pieces of `size` bytes, all to the same port (SDM volume 2B, OUTS).

        A device that has `write_many(offset, size, data)` gets them in one call.
        """
        found = self.find(port, size)
        if found is not None and isinstance(found[2], Later):
            found[2].get()
            found = self.find(port, size)
        write_many = None if found is None else getattr(found[2], "write_many", None)
        if found is not None and write_many is not None:
            with found[2].lock:
                write_many(port - found[0], size, data)
            return
        for start in range(0, len(data), size):
            self.write(port, size, int.from_bytes(data[start : start + size], "little"))
