"""A vCPU's registers as gdb reads and writes them: bytes, little-endian, by the description's sources.

Imports debug.state and constants. The x87 state is what FXSAVE gives (SDM volume 1, 10.5.1) and gdb wants as FNSAVE
does: the tags in full (8.1.7). Outside 64-bit code `pc` is linear, CS's base and the offset, so that what gdb shows and
where it puts breakpoints is where the processor is; the offset alone would be so only while that base is 0.
"""

from __future__ import annotations

from pyvmm.cpubits import CR0_PE, EFER_LMA
from pyvmm.errors import KvmError
from pyvmm.kvm.constants import KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE
from pyvmm.kvm.msrs import KERNEL_GS_BASE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.debug.gdb.description import Register

EMPTY, VALID, ZERO, SPECIAL = 3, 0, 1, 2
"""Tags of x87 registers (SDM volume 1, figure 8-7)."""
MXCSR, XSTATE_BV, XSTATE_SSE = 24 // 4, 512 // 4, 1 << 1
"""Where in the XSAVE area, in words of 32 bits, MXCSR and XSTATE_BV are; that bit says that SSE's part is in use (SDM
volume 1, 10.5.1 and 13.4.2)."""
_X87 = {"fctrl": "fcw", "fstat": "fsw", "fop": "last_opcode"}
_POINTERS = {"fioff": ("last_ip", 0), "fiseg": ("last_ip", 32), "fooff": ("last_dp", 0), "foseg": ("last_dp", 32)}


class Refused(Exception):
    """What cannot be done, in a sentence for who asks."""


class RegisterFile:
    """The registers of one vCPU that stands still: read once, changed in place, put back by `flush`.

    Raises KvmError from everything, Refused for a register that cannot be written.
    """

    def __init__(self, vcpu: Any) -> None:
        self._vcpu = vcpu
        self._state: dict[str, Any] = {}
        self._changed: set[str] = set()

    def _group(self, name: str) -> Any:
        """The structure of "regs", "sregs" or "fpu"."""
        if name not in self._state:
            self._state[name] = getattr(self._vcpu, f"get_{name}")()
        return self._state[name]

    def flush(self) -> None:
        """Give the vCPU what was written."""
        for name in ("sregs", "regs", "fpu"):
            if name in self._changed:
                getattr(self._vcpu, f"set_{name}")(self._group(name))
        self._changed.clear()

    @property
    def wide(self) -> bool:
        """Whether the code at hand is 64-bit code."""
        sregs = self._group("sregs")
        return bool(sregs.efer & EFER_LMA and sregs.cs.l)

    def read(self, register: Register) -> bytes | None:
        """The value, as many bytes as the register has; None for what this KVM does not give."""
        size = register.bits // 8
        kind, _, name = register.source.partition(".")
        if kind == "st":
            return bytes(self._group("fpu").fpr[int(name)])[:size]
        if kind == "xmm":
            return bytes(self._group("fpu").xmm[int(name)])
        try:
            value = getattr(self, f"_get_{kind}")(name)
        except KvmError:
            return None
        return None if value is None else int(value & (1 << register.bits) - 1).to_bytes(size, "little")

    def write(self, register: Register, data: bytes) -> None:
        """Change it, if `data` is another value than it has."""
        if len(data) * 8 != register.bits or data == self.read(register):
            return
        kind, _, name = register.source.partition(".")
        if kind in ("st", "xmm"):
            row = getattr(self._group("fpu"), "fpr" if kind == "st" else "xmm")[int(name)]
            row[0 : len(data)] = list(data)
            self._changed.add("fpu")
        else:
            getattr(self, f"_set_{kind}")(name, int.from_bytes(data, "little"))

    # --- General registers -------------------------------------------------------------------------------------------

    def _get_regs(self, name: str) -> int:
        return int(getattr(self._group("regs"), name))

    def _set_regs(self, name: str, value: int) -> None:
        setattr(self._group("regs"), name, value)
        self._changed.add("regs")

    def _get_pc(self, _: str) -> int:
        rip = self._get_regs("rip")
        return rip if self.wide else rip + int(self._group("sregs").cs.base) & 0xFFFF_FFFF

    def _set_pc(self, _: str, value: int) -> None:
        self._set_regs("rip", value if self.wide else value - int(self._group("sregs").cs.base) & 0xFFFF_FFFF)
        if self._vcpu.get_mp_state() == KVM_MP_STATE_HALTED:  # elsewhere it does not halt
            self._vcpu.set_mp_state(KVM_MP_STATE_RUNNABLE)

    # --- System registers --------------------------------------------------------------------------------------------

    def _get_selector(self, name: str) -> int:
        return int(getattr(self._group("sregs"), name).selector)

    def _set_selector(self, name: str, value: int) -> None:
        sregs = self._group("sregs")
        if sregs.cr0 & CR0_PE or name in ("tr", "ldt"):
            raise Refused(f"in protected mode only the guest's own instructions load {name}")
        segment = getattr(sregs, name)
        segment.selector, segment.base = value & 0xFFFF, (value & 0xFFFF) << 4  # SDM volume 3B, 21.1.1
        self._changed.add("sregs")

    def _get_base(self, name: str) -> int:
        return int(getattr(self._group("sregs"), name).base)

    def _set_base(self, name: str, value: int) -> None:
        getattr(self._group("sregs"), name).base = value
        self._changed.add("sregs")

    def _get_table(self, name: str) -> int:
        table, part = name.split(".")
        return int(getattr(getattr(self._group("sregs"), table), part))

    def _set_table(self, name: str, value: int) -> None:
        table, part = name.split(".")
        setattr(getattr(self._group("sregs"), table), part, value & 0xFFFF if part == "limit" else value)
        self._changed.add("sregs")

    def _get_control(self, name: str) -> int:
        return int(getattr(self._group("sregs"), name))

    def _set_control(self, name: str, value: int) -> None:
        setattr(self._group("sregs"), name, value)
        self._changed.add("sregs")

    def _get_msr(self, _: str) -> int | None:
        found: int | None = self._vcpu.get_msrs((KERNEL_GS_BASE,)).get(KERNEL_GS_BASE)
        return found

    def _set_msr(self, _: str, value: int) -> None:
        try:
            self._vcpu.set_msrs({KERNEL_GS_BASE: value})
        except ValueError as error:
            raise Refused(str(error)) from None

    # --- x87 and SSE -------------------------------------------------------------------------------------------------

    def _get_x87(self, name: str) -> int:
        fpu = self._group("fpu")
        if name == "ftag":
            return self._tags()
        if name in _POINTERS:
            field, shift = _POINTERS[name]
            return int(getattr(fpu, field)) >> shift & (0xFFFF if shift else 0xFFFF_FFFF)
        return int(getattr(fpu, _X87[name]))

    def _set_x87(self, name: str, value: int) -> None:
        fpu = self._group("fpu")
        if name == "ftag":
            fpu.ftwx = sum(1 << at for at in range(8) if value >> 2 * at & 3 != EMPTY)
        elif name in _POINTERS:
            field, shift = _POINTERS[name]
            mask = (0xFFFF if shift else 0xFFFF_FFFF) << shift
            setattr(fpu, field, int(getattr(fpu, field)) & ~mask | value << shift & mask)
        else:
            setattr(fpu, _X87[name], value & 0xFFFF)
        self._changed.add("fpu")

    def _get_mxcsr(self, _: str) -> int:
        return int(self._vcpu.get_xsave().region[MXCSR])  # KVM_GET_FPU leaves it out

    def _set_mxcsr(self, _: str, value: int) -> None:
        self.flush()
        xsave = self._vcpu.get_xsave()
        xsave.region[MXCSR] = value
        xsave.region[XSTATE_BV] |= XSTATE_SSE
        self._vcpu.set_xsave(xsave)
        self._state.pop("fpu", None)

    def _tags(self) -> int:
        """Two bits for each physical register; FXSAVE keeps one, and the rest is in the registers."""
        fpu = self._group("fpu")
        top = fpu.fsw >> 11 & 7
        tags = 0
        for at in range(8):
            tag = _classify(bytes(fpu.fpr[at - top & 7])[:10]) if fpu.ftwx >> at & 1 else EMPTY
            tags |= tag << 2 * at
        return int(tags)


def _classify(data: bytes) -> int:
    """The tag of an 80-bit number (SDM volume 1, 8.1.7 and table 8-3)."""
    mantissa, exponent = int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little") & 0x7FFF
    if not exponent and not mantissa:
        return ZERO
    return VALID if 0 < exponent < 0x7FFF and mantissa >> 63 else SPECIAL
