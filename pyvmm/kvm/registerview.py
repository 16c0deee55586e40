"""Registers by name, copied out of a vCPU that is not running. Imports nothing; the names are the Intel SDM's."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvmm.kvm.vcpustate import VcpuState

GENERAL = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip
SELECTORS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
A_LINE = 3


class Registers:
    """A copy of a vCPU's registers: `registers.rip`, `registers["rip"]`, `dict(registers)`; printed, a table.

    General registers under their 64-bit names in every mode, `rip`, `rflags`; the selectors `cs` to `ldt`; `cr0` to
    `cr8`, `efer`, `apic_base`.
    """

    __slots__ = ("_values",)

    def __init__(self, vcpu: VcpuState) -> None:
        """Raises KvmError."""
        regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
        self._values = {name: int(getattr(regs, name)) for name in GENERAL}
        self._values |= {name: int(getattr(sregs, name).selector) for name in SELECTORS}
        self._values |= {name: int(getattr(sregs, name)) for name in CONTROL}

    def __getattr__(self, name: str) -> int:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"there is no register {name!r} (there are {', '.join(self._values)})") from None

    def __getitem__(self, name: str) -> int:
        return self._values[name]

    def keys(self) -> Iterator[str]:
        """The names; with `[]` this is what dict() asks for."""
        return iter(self._values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Registers) and self._values == other._values

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        wide = [f"{name:>7} {self[name]:016x}" for name in GENERAL]
        lines = ["".join(wide[at : at + A_LINE]) for at in range(0, len(wide), A_LINE)]
        lines.append(" ".join(f"{name} {self[name]:04x}" for name in SELECTORS))
        lines.append(" ".join(f"{name} {self[name]:x}" for name in CONTROL))
        return "\n".join(lines)
