"""At which exits the prompt opens: the words of `--shell=EXIT` and of `until(EXIT)`. Imports exits, bus, errors.

    entry           before the guest's first instruction
    serial          an access to this device; serial.THR: to this register of it
    0x3f8           an access to this port, or from 0x10000 on to this guest-physical address; port=N, gpa=N say which
    io, mmio, any   every exit of this kind, or every exit
    hlt             a vCPU that halts

`:r` or `:w` behind an access: only reads, only writes.
"""

from __future__ import annotations

from pyvmm.bus import Later
from pyvmm.errors import UsageError
from pyvmm.kvm.exits import Mmio, Pio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from pyvmm.bus import Bus
    from pyvmm.kvm.exits import Exit

ENTRY, HALT = "entry", "hlt"
KINDS: dict[str, tuple[type[Exit], ...]] = {"io": (Pio,), "mmio": (Mmio,), "any": (Pio, Mmio)}
"""By the word for them. Every other exit ends the run, and so comes to the prompt anyway."""
EXPECTED = ("entry, hlt, io, mmio, any", "serial, serial.THR, 0x3f8, gpa=0xd0000000; accesses with :r or :w behind")
PORTS = 1 << 16
GPAS = 1 << 52
LONGEST = 80


class Stop:
    """What `text` means. Raises UsageError, in one line, for what cannot be meant.

    text   as it was given
    kinds  the exits to be looked at; () for `entry` and `hlt`, which are none
    """

    __slots__ = ("_address", "_device", "_direction", "_register", "kinds", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.kinds: tuple[type[Exit], ...] = KINDS["any"]
        self._address: int | None = None
        self._device = self._register = ""
        what, colon, direction = text.partition(":")
        if (colon and direction not in ("r", "w")) or not what or len(text) > LONGEST:
            raise _unknown(text)
        self._direction = direction
        if what.lower() in (ENTRY, HALT):
            self.kinds = ()
            if colon:
                raise _unknown(text)
        elif what.lower() in KINDS:
            self.kinds = KINDS[what.lower()]
        elif what[0].isdigit() or "=" in what:
            self._place(what, text)
        else:
            self._device, dot, self._register = what.partition(".")
            if not self._device or (dot and not self._register):
                raise _unknown(text)

    def _place(self, what: str, text: str) -> None:
        space, equals, number = what.rpartition("=")
        try:
            self._address = address = int(number, 0)
        except ValueError:
            raise _unknown(text) from None
        space = space.lower() if equals else "port" if address < PORTS else "gpa"
        if space not in ("port", "gpa"):
            raise _unknown(text)
        if not 0 <= address < (PORTS if space == "port" else GPAS):
            raise UsageError(f"{text!r}: there is no {space} {address:#x}")
        self.kinds = (Pio,) if space == "port" else (Mmio,)

    @property
    def entry(self) -> bool:
        """Whether it is meant before the first instruction alone."""
        return self.text.lower() == ENTRY

    @property
    def halt(self) -> bool:
        """Whether it is a vCPU that halts: KVM's own business, so that it has to be looked for."""
        return self.text.lower() == HALT

    def check(self, ports: Bus, mmio: Bus) -> None:
        """Raises UsageError if it names a device or a register that the machine does not have."""
        if not self._device:
            return
        there = [device for bus in (ports, mmio) for _, _, device in bus.placed()]
        meant = [device for device in there if device.name == self._device]
        if not meant:
            names = ", ".join(dict.fromkeys(device.name for device in there))
            raise UsageError(f"{self.text!r}: there is no device {self._device!r} (there are {names})")
        if self._register:
            found = {name for device in meant for name in _registers(device)}
            if self._register.lower() not in map(str.lower, found):
                names = f"has {', '.join(sorted(found))}" if found else "does not tell of any"
                raise UsageError(f"{self.text!r}: {self._device} has no register {self._register} (it {names})")

    def matches(self, exit: Any, ports: Bus, mmio: Bus) -> bool:
        """Whether `exit`, of one of `kinds`, is meant."""
        if self._direction and exit.is_write != (self._direction == "w"):
            return False
        bus, address = (ports, exit.port) if exit.__class__ is Pio else (mmio, exit.gpa)
        if self._address is not None:
            return bool(address <= self._address < address + exit.size)
        if not self._device:
            return True
        found = bus.find(address, exit.size)
        if found is None or found[2].name != self._device:
            return False
        if not self._register:
            return True
        at: Callable[[int, bool], Any] | None = getattr(found[2], "register_at", None)
        if at is None:
            return False
        offsets = range(address - found[0], address - found[0] + exit.size)
        named = (at(offset, exit.is_write) for offset in offsets)
        return any(one is not None and one.name.lower() == self._register.lower() for one in named)


def _registers(device: Any) -> Iterator[str]:
    """The names of what `register_at` may give."""
    device = device.get() if isinstance(device, Later) else device
    for model in getattr(device, "models", (device,)):
        for register in getattr(model, "registers", None) or ():
            yield register.name
        for register, _ in model.peek() if hasattr(model, "peek") else ():
            yield register.name


def _unknown(text: str) -> UsageError:
    return UsageError(f"{text[:LONGEST]!r} is no exit to stop at (expected {', '.join(EXPECTED)})")
