"""Declarative registers and register files: what a device's registers are called, and who answers for them.

Imports state and hot. A register is declared once, as data: name, offset, width, access, reset value, bit
fields, and the section that specifies it. Dispatch, decoding, printing and look-up all follow from the
declaration. Devices subclass `RegisterFile` (byte-wide registers behind ports); a register called LSR is then
served by the methods `read_lsr` and `write_lsr`, as its access says.
"""

from __future__ import annotations

from operator import attrgetter

from pyvmm.hot import Group
from pyvmm.stateful import Stateful

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any, ClassVar

    Readers = tuple[Callable[[Any], int], ...]
    Writers = tuple[Callable[[Any, int], None], ...]


class Field:
    """Some neighbouring bits of a register.

    name, mask   the specification's name, and the bits in place
    meaning      what it says, in a few words
    values       names of its values (of the field alone, shifted down), where it is more than a flag
    """

    __slots__ = ("mask", "meaning", "name", "shift", "values")

    def __init__(self, name: str, mask: int, meaning: str, values: Mapping[int, str] | None = None) -> None:
        self.name = name
        self.mask = mask
        self.meaning = meaning
        self.values = values
        self.shift = (mask & -mask).bit_length() - 1

    def of(self, value: int) -> int:
        """The field's value within the register value `value`."""
        return (value & self.mask) >> self.shift

    def describe(self, value: int) -> str:
        """The field within `value`: a flag's name if it is set, else ""; "NAME=value" for anything wider."""
        field = self.of(value)
        if self.values is None and self.mask >> self.shift == 1:
            return self.name if field else ""
        return f"{self.name}={(self.values or {}).get(field) or hex(field)}"


class Register:
    """One register.

    name     the specification's name, unique in its map
    offset   bytes from the start of the range
    spec     where it is specified: document and section
    fields   its bit fields, from bit 0 up
    width    bytes: 1, 2, 4 or 8
    access   "r", "w" or "rw", as the guest sees it
    reset    value after reset
    bank     number of the register bank that it belongs to; None: it is in all of them
    action   what the run loop in C may do alone, while the device allows it (`pyvmm.hot`): POST, SHADOW, CLEAR or 0
    """

    __slots__ = ("access", "action", "bank", "fields", "name", "offset", "reset", "spec", "width")

    def __init__(
        self,
        name: str,
        offset: int,
        spec: str,
        *fields: Field,
        width: int = 1,
        access: str = "rw",
        reset: int = 0,
        bank: int | None = None,
        action: int = 0,
    ) -> None:
        self.name = name
        self.offset = offset
        self.spec = spec
        self.fields = fields
        self.width = width
        self.access = access
        self.reset = reset
        self.bank = bank
        self.action = action

    def describe(self, value: int) -> str:
        """`value` in words: "LSR 0x61: DR THRE TEMT". Bits that no field names are added as a number."""
        parts = [text for text in (field.describe(value) for field in self.fields) if text]
        rest = value
        for field in self.fields:
            rest &= ~field.mask
        if self.fields and rest:
            parts.append(f"+{rest:#x}")
        number = f"{self.name} {value:#0{2 + 2 * self.width}x}"
        return f"{number}: {' '.join(parts)}" if parts else number

    def __repr__(self) -> str:
        return f"<Register {self.name} at {self.offset:#x}, {self.access}, {self.spec}>"


class RegisterMap:
    """All registers of one kind of device, found by name (`map["LSR"]`) or by what an access means (`at`).

    length   bytes that the registers span
    """

    __slots__ = ("_at", "_named", "length", "registers")

    def __init__(self, length: int, *registers: Register) -> None:
        """Raises ValueError: two registers of one name, two for one access, or one beyond `length`."""
        self.length = length
        self.registers = registers
        self._named = {register.name: register for register in registers}
        self._at: dict[tuple[int, bool, int], Register] = {}
        if len(self._named) != len(registers):
            raise ValueError("two registers of one name")
        for register in registers:
            if register.offset + register.width > length:
                raise ValueError(f"{register!r} does not fit {length} bytes")
            for direction in register.access:
                for bank in self.banks() if register.bank is None else (register.bank,):
                    key = (register.offset, direction == "w", bank)
                    if self._at.setdefault(key, register) is not register:
                        raise ValueError(f"{register!r} answers the same access as {self._at[key]!r}")

    def banks(self) -> range:
        """The numbers of its register banks; just 0 where it has no more than one."""
        return range(1 + max((register.bank or 0 for register in self.registers), default=0))

    def at(self, offset: int, is_write: bool, bank: int = 0) -> Register | None:
        """The register that a read or write at `offset` means while `bank` is selected, or None."""
        return self._at.get((offset, is_write, bank))

    def __getitem__(self, name: str) -> Register:
        return self._named[name]

    def __iter__(self) -> Iterator[Register]:
        return iter(self.registers)

    def peek(self, device: object, holds: Mapping[str, str]) -> Iterator[tuple[Register, int]]:
        """The registers that `holds` names, each with the value of that attribute of `device`; see HOLDS below."""
        for register in self.registers:
            if register.name in holds:
                yield register, attrgetter(holds[register.name])(device)

    def bind(self, device: type, bank: int) -> tuple[Readers, Writers]:
        """The functions of class `device` that serve each offset while `bank` is selected, indexed by offset.

        Where nothing is declared, reads give 0xff and writes vanish. Raises AttributeError when `device`
        lacks the method that a register calls for.
        """
        readers: list[Callable[[Any], int]] = [_read_nothing] * self.length
        writers: list[Callable[[Any, int], None]] = [_write_nothing] * self.length
        for (offset, is_write, of_bank), register in self._at.items():
            if of_bank == bank and is_write:
                writers[offset] = getattr(device, f"write_{register.name.lower()}")
            elif of_bank == bank:
                readers[offset] = getattr(device, f"read_{register.name.lower()}")
        return tuple(readers), tuple(writers)


def _read_nothing(device: object) -> int:
    return 0xFF


def _write_nothing(device: object, value: int) -> None:
    pass


class RegisterFile(Stateful):
    """Base of a device that is byte-wide registers: a bus device that calls one method per register access.

        class Serial(RegisterFile, registers=REGISTERS): ...

    The tables belong to the class and hold plain functions, so a device costs nothing to make and is in no
    reference cycle. A wider access is split into bytes at consecutive offsets, lowest first, as the PC/AT
    does for 8-bit devices (IBM PC/AT Technical Reference, system board, I/O channel).

    Offsets are the bus's promise: 0 <= offset < length. The rest of a wide access may lie beyond.
    """

    __slots__ = ("_readers", "_writers", "bank", "lock", "name", "window")

    registers: ClassVar[RegisterMap]
    HOLDS: ClassVar[Mapping[str, str]] = {}
    """The attributes that have registers' values, by the registers' names: for who looks and must change nothing, as
    reading a register may."""
    _tables: ClassVar[tuple[tuple[Readers, Writers], ...]]

    def __init_subclass__(cls, *, registers: RegisterMap) -> None:
        cls.registers = registers
        cls._tables = tuple(registers.bind(cls, bank) for bank in registers.banks())

    def __init__(self, name: str, group: Group | None = None) -> None:
        """A device called `name` in messages, its bank 0 selected.

        `window` is what of it the run loop in C sees: with `group`, what the declarations and the device say of it.
        """
        group = group or Group()
        self.name = name
        self.lock = group.lock
        self.window = group.window(self, 0, self.registers.length, 1)
        self.select(0)

    def select(self, bank: int) -> None:
        """Let register bank number `bank` answer from now on."""
        self.bank = bank
        self._readers, self._writers = self._tables[bank]

    def peek(self) -> Iterable[tuple[Register, int]]:
        """Registers with their values as they stand, none of which is read by that. `lock` is held."""
        return self.registers.peek(self, self.HOLDS)

    def register_at(self, offset: int, is_write: bool) -> Register | None:
        """The register that such an access means in the device's present state, or None."""
        return self.registers.at(offset, is_write, self.bank)

    def read(self, offset: int, size: int) -> int:
        """The bus's read: `size` bytes at `offset`. The bus holds `lock`."""
        if size == 1:
            return self._readers[offset](self)
        value = 0
        for at in range(offset, offset + size):
            byte = self._readers[at](self) if at < self.registers.length else 0xFF
            value |= byte << ((at - offset) * 8)
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """The bus's write: `value`, `size` bytes wide, at `offset`. The bus holds `lock`."""
        if size == 1:
            self._writers[offset](self, value)
            return
        for at in range(offset, min(offset + size, self.registers.length)):
            # Looked up one at a time: the first byte may switch banks.
            self._writers[at](self, value & 0xFF)
            value >>= 8

    def write_many(self, offset: int, size: int, data: bytes) -> None:
        """String output: `data` as elements of `size` bytes, all written at `offset`. The bus holds `lock`."""
        for start in range(0, len(data), size):
            self.write(offset, size, int.from_bytes(data[start : start + size], "little"))

    def posted(self, offset: int, size: int, data: bytes) -> None:
        """Writes that the run loop in C has posted. Called under `lock`."""
        self.write_many(offset, size, data)


class PortWindow:
    """A part of a register file as a bus device of its own, for devices that answer at two unrelated places.

    It shares the device's lock; its offset 0 is the device's `offset`.
    """

    __slots__ = ("device", "lock", "name", "offset")

    def __init__(self, device: RegisterFile, offset: int) -> None:
        self.device = device
        self.offset = offset
        self.name = device.name
        self.lock = device.lock

    @property
    def models(self) -> tuple[RegisterFile, ...]:
        """What is behind it."""
        return (self.device,)

    def register_at(self, offset: int, is_write: bool) -> Register | None:
        """As RegisterFile.register_at, from this window's start."""
        return self.device.register_at(self.offset + offset, is_write)

    def read(self, offset: int, size: int) -> int:
        """As RegisterFile.read, from this window's start."""
        return self.device.read(self.offset + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """As RegisterFile.write, from this window's start."""
        self.device.write(self.offset + offset, size, value)
