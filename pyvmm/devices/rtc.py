"""The real-time clock and CMOS RAM: an MC146818A that tells the host's time and the guest's memory size.

Imports registers, state and its declarations. Follows Motorola's MC146818A data sheet and the IBM PC/AT Technical
Reference, whose sections the declarations name.

The time is the injected clock's, in UTC, plus the whole seconds by which the guest has set it differently. It
is computed when it is read, and so are the flags of register C: from what has happened since they were last
looked at. No interrupt is raised: IRQ 8 stays low, also with PIE, AIE or UIE set, though IRQF says what it
would have been.

The second changes at once; UIP is set for the time that the chip would need before it, so a guest that polls
UIP sees it rise and fall each second. The time base is always 32,768 Hz and never in reset, whatever DV says.
The day of the week follows from the date. A date that does not exist reads back as written while SET is set,
and is then carried over: 31 February is 3 March.
"""

from __future__ import annotations

import time

from pyvmm.devices import rtc_registers as cmos
from pyvmm.registers import Register, RegisterFile
from pyvmm.state import SECONDS, U8, Bytes, Maybe, Number, Numbered, StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyvmm.hot import Group

KIB, MIB = 1 << 10, 1 << 20
BASE_MEMORY_LIMIT = 640 * KIB
DAY = 86400
INDEX = cmos.PORTS["INDEX"]

UPDATE_SECONDS = (244 + 1984) * 1e-6
"""How long before the second's end UIP is set: t_BUC and t_UC at 32,768 Hz (table 6)."""

_TIME = frozenset(
    (
        cmos.SECONDS,
        cmos.MINUTES,
        cmos.HOURS,
        cmos.DAY_OF_WEEK,
        cmos.DAY_OF_MONTH,
        cmos.MONTH,
        cmos.YEAR,
        cmos.CENTURY,
    )
)
_ALARM = frozenset((cmos.SECONDS_ALARM, cmos.MINUTES_ALARM, cmos.HOURS_ALARM))
_FLAGS_DEPEND_ON = _TIME | _ALARM | {cmos.REGISTER_A, cmos.REGISTER_B}
"""What decides which flags are set: before it changes, they are brought up to date by the old values."""


def _period(rate: int) -> float:
    """Seconds between periodic flags for RS = `rate` at 32,768 Hz; 0 for none (table 5)."""
    if rate == 0:
        return 0.0
    return (1 << (rate + 7 if rate < 3 else rate) - 1) / 32768


def _days(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 to a date of the Gregorian calendar; month and day may be out of range."""
    year += (month - 1) // 12
    month = (month - 1) % 12 + 1
    # Counted from 1 March, so that the leap day is the year's last.
    if month < 3:
        year, month = year - 1, month + 12
    return 365 * year + year // 4 - year // 100 + year // 400 + (153 * month - 457) // 5 + day - 719469


class Rtc(RegisterFile, registers=cmos.PORTS):
    """An RTC with 128 bytes of CMOS RAM, of which the clock takes the first 14 and the century.

    below_4g, above_4g   bytes of RAM that the guest has below and above 4 GiB
    clock                seconds since 1970-01-01 UTC
    """

    __slots__ = ("_clock", "_flags", "_index", "_offset", "_ram", "_seen", "_set_time")

    STATE = {
        "_ram": Bytes(cmos.CMOS_BYTES),
        "_offset": Number(1 << 50, -(1 << 50)),
        "_set_time": Maybe(Numbered(cmos.CMOS_BYTES - 1, U8)),
        "_seen": SECONDS,
        "_index": Number(cmos.CMOS_BYTES - 1),
        "_flags": U8,
    }
    """It is no offset to a time of the snapshot's that is kept: a restored clock shows the time that it is then."""

    def __init__(
        self,
        below_4g: int,
        above_4g: int,
        clock: Callable[[], float] = time.time,
        name: str = "rtc",
        group: Group | None = None,
    ) -> None:
        super().__init__(name, group)
        self.window.on_write(INDEX.offset, INDEX.action)
        self._clock = clock
        self._ram = bytearray(cmos.CMOS_BYTES)
        for register in cmos.CMOS:
            self._ram[register.offset] = register.reset
        self._put(cmos.BASE_MEMORY, min(below_4g, BASE_MEMORY_LIMIT) // KIB, 2)
        for at in (cmos.EXTENDED_MEMORY, cmos.EXTENDED_MEMORY_FOUND):
            self._put(at, max(below_4g - MIB, 0) // KIB, 2)
        self._put(cmos.MEMORY_ABOVE_16M, max(below_4g - 16 * MIB, 0) // (64 * KIB), 2)
        self._put(cmos.MEMORY_ABOVE_4G, above_4g // (64 * KIB), 3)
        checksum = sum(self._ram[at] for at in cmos.CHECKED)
        self._ram[cmos.CHECKSUM : cmos.CHECKSUM + 2] = checksum.to_bytes(2, "big")
        self._offset = 0
        """Whole seconds to add to the clock."""
        self._set_time: dict[int, int] | None = None
        """While SET is set, the time's bytes as they stand."""
        self._seen = clock()
        """When the flags were last brought up to date."""
        self._index = 0
        self._flags = 0

    def restored(self) -> None:
        """The time stands only as a whole."""
        if self._set_time is not None and self._set_time.keys() != _TIME:
            raise StateError(f"{self.name}: set_time is not a time")

    def _put(self, index: int, value: int, width: int) -> None:
        """A little-endian number that stays at its maximum where it does not fit."""
        self._ram[index : index + width] = min(value, (1 << width * 8) - 1).to_bytes(width, "little")

    def reset(self) -> None:
        """The RESET pin: interrupts off, flags clear. Time and RAM have a battery ("Register B", "Register C")."""
        self._ram[cmos.REGISTER_B] &= ~(cmos.B_PIE | cmos.B_AIE | cmos.B_UIE | cmos.B_SQWE)
        self._catch_up(self._clock())
        self._flags = 0
        self._index = 0

    # --- Ports ----------------------------------------------------------------------------------------------

    def peek(self) -> Iterator[tuple[Register, int]]:
        """The index, the time and the clock's registers; the flags as when they were last brought up to date."""
        yield cmos.PORTS["INDEX"], self._index
        now = self._set_time if self._set_time is not None else self._time_bytes(self._clock())
        for index in sorted(_TIME):
            yield self._cmos(index), now[index]
        for index in (cmos.REGISTER_A, cmos.REGISTER_B, cmos.REGISTER_D):
            yield self._cmos(index), self._ram[index]
        yield self._cmos(cmos.REGISTER_C), self._flags

    @staticmethod
    def _cmos(index: int) -> Register:
        found = cmos.CMOS.at(index, False)
        assert found is not None
        return found

    def register_at(self, offset: int, is_write: bool) -> Register | None:
        """What the access means now: behind the data port, the CMOS byte that the index selects."""
        port = super().register_at(offset, is_write)
        if port is not None and port.name == "DATA":
            return cmos.CMOS.at(self._index, is_write) or port
        return port

    def write_index(self, value: int) -> None:
        """Select a byte. The NMI mask in bit 7 masks nothing: the machine has no source of NMI."""
        self._index = value & cmos.CMOS_BYTES - 1

    def read_data(self) -> int:
        """The byte selected."""
        index = self._index
        if index in _TIME:
            bytes_ = self._set_time
            return bytes_[index] if bytes_ is not None else self._time_bytes(self._clock())[index]
        if index == cmos.REGISTER_A:
            return self._ram[index] | (cmos.A_UIP if self._updating() else 0)
        if index == cmos.REGISTER_C:
            return self._take_flags()
        return self._ram[index]

    def write_data(self, value: int) -> None:
        """Write the byte selected."""
        index = self._index
        if index in _FLAGS_DEPEND_ON:
            self._catch_up(self._clock())
        if index in _TIME:
            self._write_time(index, value)
        elif index == cmos.REGISTER_A:
            self._ram[index] = value & ~cmos.A_UIP
        elif index == cmos.REGISTER_B:
            self._write_b(value)
        elif index not in (cmos.REGISTER_C, cmos.REGISTER_D):
            self._ram[index] = value

    # --- Time -----------------------------------------------------------------------------------------------

    def _encode(self, value: int) -> int:
        """`value` (0 to 99) as the format of register B has it."""
        return value if self._ram[cmos.REGISTER_B] & cmos.B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, byte: int) -> int:
        return byte if self._ram[cmos.REGISTER_B] & cmos.B_BINARY else (byte >> 4) * 10 + (byte & 0x0F)

    def _decode_hours(self, byte: int) -> int:
        if self._ram[cmos.REGISTER_B] & cmos.B_24_HOURS:
            return self._decode(byte)
        return self._decode(byte & ~cmos.HOURS_PM) % 12 + (12 if byte & cmos.HOURS_PM else 0)

    def _time_bytes(self, now: float) -> dict[int, int]:
        """The time's bytes, by index, when the clock says `now`."""
        moment = time.gmtime(int(now // 1) + self._offset)
        hours = moment.tm_hour
        if self._ram[cmos.REGISTER_B] & cmos.B_24_HOURS:
            hours = self._encode(hours)
        else:
            hours = self._encode(hours % 12 or 12) | (cmos.HOURS_PM if hours >= 12 else 0)
        encode = self._encode
        return {
            cmos.SECONDS: encode(moment.tm_sec),
            cmos.MINUTES: encode(moment.tm_min),
            cmos.HOURS: hours,
            cmos.DAY_OF_WEEK: encode((moment.tm_wday + 1) % 7 + 1),  # 1 is Sunday
            cmos.DAY_OF_MONTH: encode(moment.tm_mday),
            cmos.MONTH: encode(moment.tm_mon),
            cmos.YEAR: encode(moment.tm_year % 100),
            cmos.CENTURY: encode(moment.tm_year // 100 % 100),
        }

    def _set_from(self, bytes_: dict[int, int], now: float) -> None:
        """Let the time be what `bytes_` say when the clock says `now`. The fraction of the second goes on."""
        decode = self._decode
        year = decode(bytes_[cmos.CENTURY]) % 100 * 100 + decode(bytes_[cmos.YEAR])
        days = _days(year, decode(bytes_[cmos.MONTH]), decode(bytes_[cmos.DAY_OF_MONTH]))
        seconds = self._decode_hours(bytes_[cmos.HOURS]) * 3600 + decode(bytes_[cmos.MINUTES]) * 60
        self._offset = days * DAY + seconds + decode(bytes_[cmos.SECONDS]) - int(now // 1)

    def _write_time(self, index: int, value: int) -> None:
        if self._set_time is not None:
            self._set_time[index] = value
            return
        now = self._clock()
        bytes_ = self._time_bytes(now)
        bytes_[index] = value
        self._set_from(bytes_, now)

    def _write_b(self, value: int) -> None:
        if value & cmos.B_SET:
            value &= ~cmos.B_UIE  # Going high, SET clears it; while it is high, there are no updates
            if self._set_time is None:
                self._set_time = self._time_bytes(self._clock())
        self._ram[cmos.REGISTER_B] = value
        if self._set_time is not None and not value & cmos.B_SET:
            bytes_, self._set_time = self._set_time, None
            self._set_from(bytes_, self._clock())

    def _updating(self) -> bool:
        return self._set_time is None and self._clock() % 1 >= 1 - UPDATE_SECONDS

    # --- Flags ----------------------------------------------------------------------------------------------

    def _take_flags(self) -> int:
        """Register C, which reading clears."""
        self._catch_up(self._clock())
        flags, self._flags = self._flags, 0
        return flags | (cmos.C_IRQF if flags & self._ram[cmos.REGISTER_B] else 0)

    def _catch_up(self, now: float) -> None:
        """Set the flags for what has happened since the last call."""
        then, self._seen = self._seen, now
        if now <= then:  # The host's clock was set back
            return
        period = _period(self._ram[cmos.REGISTER_A] & cmos.A_RS)
        if period and now // period > then // period:
            self._flags |= cmos.C_PF
        first, last = int(then // 1) + 1, int(now // 1)
        if first <= last and self._set_time is None:
            self._flags |= cmos.C_UF
            if self._alarm_within(first + self._offset, last + self._offset):
                self._flags |= cmos.C_AF

    def _alarm_within(self, first: int, last: int) -> bool:
        """Whether the alarm's time of day comes from second `first` to second `last`. At most 144 steps."""
        alarm = self._ram[cmos.SECONDS_ALARM], self._ram[cmos.MINUTES_ALARM], self._ram[cmos.HOURS_ALARM]
        any_second, any_minute, any_hour = (byte & cmos.ALARM_ANY == cmos.ALARM_ANY for byte in alarm)
        second, minute, hour = self._decode(alarm[0]), self._decode(alarm[1]), self._decode_hours(alarm[2])
        if not (any_second or second < 60) or not (any_minute or minute < 60) or not (any_hour or hour < 24):
            return False  # No such time: without this the search below would take a step for each second of the day
        at, last = first, min(last, first + DAY - 1)
        while at <= last:
            if not (any_hour or hour == at // 3600 % 24):
                at += 3600 - at % 3600
            elif not (any_minute or minute == at // 60 % 60):
                at += 60 - at % 60
            elif not (any_second or second == at % 60):
                at += 1
            else:
                return True
        return False
