"""Plain values that go to KVM and come back in lists. Pure Python, imports nothing."""

from __future__ import annotations


class CpuidEntry:
    """What the CPUID instruction answers to one leaf (KVM API, 4.46, struct kvm_cpuid_entry2).

    function  the leaf, EAX as given
    index     the subleaf, ECX as given; it counts where flags has KVM_CPUID_FLAG_SIGNIFCANT_INDEX
    """

    __slots__ = ("eax", "ebx", "ecx", "edx", "flags", "function", "index")

    def __init__(
        self,
        function: int,
        index: int = 0,
        flags: int = 0,
        eax: int = 0,
        ebx: int = 0,
        ecx: int = 0,
        edx: int = 0,
    ) -> None:
        self.function = function
        self.index = index
        self.flags = flags
        self.eax = eax
        self.ebx = ebx
        self.ecx = ecx
        self.edx = edx

    def _key(self) -> tuple[int, ...]:
        return (self.function, self.index, self.flags, self.eax, self.ebx, self.ecx, self.edx)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CpuidEntry) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        registers = f"eax={self.eax:#x}, ebx={self.ebx:#x}, ecx={self.ecx:#x}, edx={self.edx:#x}"
        return f"CpuidEntry({self.function:#x}, {self.index}, flags={self.flags}, {registers})"


class IrqchipRoute:
    """GSI `gsi` drives pin `pin` of an in-kernel chip, one of KVM_IRQCHIP_ (KVM API, 4.52)."""

    __slots__ = ("gsi", "irqchip", "pin")

    def __init__(self, gsi: int, irqchip: int, pin: int) -> None:
        self.gsi = gsi
        self.irqchip = irqchip
        self.pin = pin


class MsiRoute:
    """GSI `gsi` sends the message `data` to the 64-bit `address` (KVM API, 4.52; Intel SDM 3A, 11.11)."""

    __slots__ = ("address", "data", "gsi")

    def __init__(self, gsi: int, address: int, data: int) -> None:
        self.gsi = gsi
        self.address = address
        self.data = data
