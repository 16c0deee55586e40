"""ACPI's fixed hardware: power button, soft-off, power management timer, general-purpose events, and their SCI.

Imports registers and state. ACPI specification 6.5, 4.8.3 and 4.8.4.1. The machine is always in ACPI mode: SCI_EN
reads 1. TMR_STS follows the timer's highest bit as 4.8.3.3 has it, when it is read; no interrupt comes of it, since no
kernel asks for one.
"""

from __future__ import annotations

import time
from threading import Lock

from pyvmm.registers import Field, Register, RegisterMap
from pyvmm.state import U8, U32, Number, Stateful

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pyvmm.events import IrqLine

TIMER_HZ = 3_579_545
"""Frequency of the PM timer (4.8.3.3)."""
TMR_STS, GBL_STS, PWRBTN_STS, RTC_STS, WAK_STS = 1 << 0, 1 << 5, 1 << 8, 1 << 10, 1 << 15
TMR_EN, GBL_EN, PWRBTN_EN, RTC_EN = TMR_STS, GBL_STS, PWRBTN_STS, RTC_STS
ENABLE_BITS = TMR_EN | GBL_EN | PWRBTN_EN | RTC_EN
"""Linux enables the clock's event for a moment, whatever FIX_RTC says, and complains unless the bit stays."""
SCI_EN, SLP_TYP_SHIFT, SLP_EN = 1 << 0, 10, 1 << 13
SLP_TYP = 7 << SLP_TYP_SHIFT

GPE_STATUS, GPE_ENABLE = 12, 13
"""Offsets of the bytes of the general-purpose event block."""

REGISTERS = RegisterMap(
    14,
    Register(
        "PM1_STS",
        0,
        "ACPI 6.5, 4.8.3.1.1",
        Field("TMR_STS", TMR_STS, "the timer's highest bit has changed"),
        Field("GBL_STS", GBL_STS, "firmware wants the global lock's attention"),
        Field("PWRBTN_STS", PWRBTN_STS, "the power button was pressed"),
        Field("RTC_STS", RTC_STS, "the clock's alarm; never set"),
        Field("WAK_STS", WAK_STS, "woken from a sleep; never set"),
        width=2,
    ),
    Register(
        "PM1_EN",
        2,
        "ACPI 6.5, 4.8.3.1.2",
        Field("TMR_EN", TMR_EN, "SCI for TMR_STS"),
        Field("GBL_EN", GBL_EN, "SCI for GBL_STS"),
        Field("PWRBTN_EN", PWRBTN_EN, "SCI for PWRBTN_STS"),
        Field("RTC_EN", RTC_EN, "SCI for RTC_STS"),
        width=2,
    ),
    Register(
        "PM1_CNT",
        4,
        "ACPI 6.5, 4.8.3.2.1",
        Field("SCI_EN", SCI_EN, "in ACPI mode"),
        Field("SLP_TYP", SLP_TYP, "the sleep that SLP_EN enters"),
        Field("SLP_EN", SLP_EN, "sleep now; reads 0"),
        width=2,
        reset=SCI_EN,
    ),
    Register("PM_TMR", 8, "ACPI 6.5, 4.8.3.3", width=4, access="r"),
    Register("GPE0_STS", GPE_STATUS, "ACPI 6.5, 4.8.4.1.1"),
    Register("GPE0_EN", GPE_ENABLE, "ACPI 6.5, 4.8.4.1.2"),
)


class AcpiPm(Stateful):
    """PM1 event and control blocks, the PM timer and a block of 8 general-purpose events, in one range of 14 bytes.

    `irq` is the SCI, a level. `power_off()` is called, under the device's lock, when the guest enters soft-off: a
    write of SLP_EN with one of `off_types` in SLP_TYP. `clock()` gives seconds that never go back.
    """

    __slots__ = (
        "_ahead",
        "_clock",
        "_control",
        "_enable",
        "_gpe_enable",
        "_gpe_status",
        "_irq",
        "_off_types",
        "_power_off",
        "_seen_high",
        "_status",
        "lock",
        "name",
    )

    STATE = {
        "_status": Number(0xFFFF),
        "_enable": Number(ENABLE_BITS),
        "_control": Number(0xFFFF),
        **dict.fromkeys(("_gpe_status", "_gpe_enable"), U8),
        "_seen_high": Number(1),
        "timer": U32,
    }
    HOLDS = {
        "PM1_STS": "_status",
        "PM1_EN": "_enable",
        "PM1_CNT": "_control",
        "PM_TMR": "timer",
        "GPE0_STS": "_gpe_status",
        "GPE0_EN": "_gpe_enable",
    }
    registers = REGISTERS

    def __init__(
        self,
        irq: IrqLine,
        power_off: Callable[[], None],
        off_types: tuple[int, ...],
        *,
        clock: Callable[[], float] = time.monotonic,
        name: str = "acpi-pm",
    ) -> None:
        self.name = name
        self.lock = Lock()
        self._irq = irq
        self._power_off = power_off
        self._off_types = off_types
        self._clock = clock
        self._ahead = 0  # of the clock, in ticks
        self.reset()

    def reset(self) -> None:
        """Nothing pending, nothing enabled, in ACPI mode."""
        self._status = self._enable = self._gpe_status = self._gpe_enable = 0
        self._control = SCI_EN
        self._seen_high = self.timer >> 31
        self._update()

    def press_power_button(self) -> None:
        """Ask the guest to shut down (4.8.3.1.1). For any thread."""
        with self.lock:
            self._status |= PWRBTN_STS
            self._update()

    def raise_event(self, number: int) -> None:
        """General-purpose event `number`, 0 to 7, has happened (4.8.4.1). For any thread."""
        with self.lock:
            self._gpe_status |= 1 << number
            self._update()

    @property
    def listening(self) -> bool:
        """Whether the guest would be interrupted by its power button."""
        return bool(self._enable & PWRBTN_EN)

    def register_at(self, offset: int, is_write: bool) -> Register | None:
        """The register that an access at `offset` begins in, or None."""
        return next((it for it in REGISTERS if it.offset <= offset < it.offset + it.width), None)

    def peek(self) -> Iterable[tuple[Register, int]]:
        """As RegisterFile.peek."""
        return REGISTERS.peek(self, self.HOLDS)

    def read(self, offset: int, size: int) -> int:
        """The bus's read: any width, since software reads these registers whole or in bytes (4.8.3)."""
        timer = self.timer
        if timer >> 31 != self._seen_high:
            self._seen_high ^= 1
            self._status |= TMR_STS
        image = self._status | self._enable << 16 | self._control << 32 | 0xFFFF << 48 | timer << 64
        image |= self._gpe_status << 96 | self._gpe_enable << 104
        ones = (1 << (8 * size)) - 1
        return image >> (8 * offset) & ones if offset + size <= REGISTERS.length else ones

    def write(self, offset: int, size: int, value: int) -> None:
        """The bus's write: status bits are cleared by ones, byte by byte; the timer ignores it."""
        for at in range(offset, offset + size):
            bits = (value & 0xFF) << (8 * (at & 1))
            mask = 0xFF << (8 * (at & 1))
            if at < 2:
                self._status &= ~bits
            elif at < 4:
                self._enable = (self._enable & ~mask | bits) & ENABLE_BITS
            elif at < 6:
                self._write_control(mask, bits)
            elif at == GPE_STATUS:
                self._gpe_status &= ~value
            elif at == GPE_ENABLE:
                self._gpe_enable = value & 0xFF
            value >>= 8
        self._update()

    def _write_control(self, mask: int, bits: int) -> None:
        self._control = (self._control & ~mask | bits) & SLP_TYP | SCI_EN
        if bits & SLP_EN and (self._control & SLP_TYP) >> SLP_TYP_SHIFT in self._off_types:
            self._power_off()

    @property
    def timer(self) -> int:
        """PM_TMR. It goes on from what it is set to, as a restored one does: the clock may be another host's."""
        return int(self._clock() * TIMER_HZ) + self._ahead & 0xFFFFFFFF

    @timer.setter
    def timer(self, value: int) -> None:
        self._ahead = value - int(self._clock() * TIMER_HZ)

    def restored(self) -> None:
        """See to the interrupt line."""
        self._update()

    def _update(self) -> None:
        self._irq.set(bool(self._status & self._enable & ~TMR_STS or self._gpe_status & self._gpe_enable))
