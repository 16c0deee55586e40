"""The bits of the processor's registers by name, for reading aloud.

Imports nothing. The constants that code computes with are in `pyvmm.cpubits`; a test holds names and constants
together.
Follows the Intel SDM: RFLAGS volume 1, 3.4.3; CR0 and CR4 volume 3A, 2.5; EFER volume 4, table 2-2 (bits
above 11: AMD APM volume 2, 3.1.7); IA32_APIC_BASE volume 3A, 11.4.4; DR6 and DR7 volume 3B, 18.2.3 and 18.2.4; MXCSR
volume 1, 10.2.3; exceptions volume 3A, table 6-1; segment types volume 3A, 3.4.5.1 and 3.5.
"""

from __future__ import annotations

RFLAGS = {
    0: "CF", 2: "PF", 4: "AF", 6: "ZF", 7: "SF", 8: "TF", 9: "IF", 10: "DF", 11: "OF",
    14: "NT", 16: "RF", 17: "VM", 18: "AC", 19: "VIF", 20: "VIP", 21: "ID",
}  # fmt: skip
RFLAGS_UNNAMED = 1 << 1 | 3 << 12
"""Bit 1 is always set; IOPL is a number of two bits."""
CR0 = {
    0: "PE", 1: "MP", 2: "EM", 3: "TS", 4: "ET", 5: "NE", 16: "WP", 18: "AM", 29: "NW", 30: "CD", 31: "PG",
}  # fmt: skip
CR4 = {
    0: "VME", 1: "PVI", 2: "TSD", 3: "DE", 4: "PSE", 5: "PAE", 6: "MCE", 7: "PGE", 8: "PCE", 9: "OSFXSR",
    10: "OSXMMEXCPT", 11: "UMIP", 12: "LA57", 13: "VMXE", 14: "SMXE", 16: "FSGSBASE", 17: "PCIDE",
    18: "OSXSAVE", 19: "KL", 20: "SMEP", 21: "SMAP", 22: "PKE", 23: "CET", 24: "PKS",
    25: "UINTR", 27: "LASS", 28: "LAM_SUP", 32: "FRED",
}  # fmt: skip
EFER = {0: "SCE", 8: "LME", 10: "LMA", 11: "NXE", 12: "SVME", 13: "LMSLE", 14: "FFXSR", 15: "TCE"}
APIC_BASE = {8: "BSP", 10: "x2APIC", 11: "enabled"}
MISC_ENABLE = {0: "fast-strings", 3: "TCC", 7: "perfmon", 11: "BTS-unavailable", 12: "PEBS-unavailable", 16: "EIST"}
DR6 = {0: "B0", 1: "B1", 2: "B2", 3: "B3", 13: "BD", 14: "BS", 15: "BT"}
DR7 = {
    0: "L0", 1: "G0", 2: "L1", 3: "G1", 4: "L2", 5: "G2", 6: "L3", 7: "G3", 8: "LE", 9: "GE", 13: "GD",
}  # fmt: skip
DR7_UNNAMED = 0xFFFF_0000 | 1 << 10
"""R/W and LEN of the four breakpoints are numbers, bit 10 is always set."""
MXCSR = {
    0: "IE", 1: "DE", 2: "ZE", 3: "OE", 4: "UE", 5: "PE", 6: "DAZ", 7: "IM", 8: "DM", 9: "ZM", 10: "OM", 11: "UM",
    12: "PM", 15: "FZ",
}  # fmt: skip

EXCEPTIONS = {
    0: "#DE divide error", 1: "#DB debug", 2: "NMI", 3: "#BP breakpoint", 4: "#OF overflow",
    5: "#BR bound range", 6: "#UD invalid opcode", 7: "#NM no math coprocessor", 8: "#DF double fault",
    10: "#TS invalid TSS", 11: "#NP segment not present", 12: "#SS stack fault", 13: "#GP general protection",
    14: "#PF page fault", 16: "#MF x87 error", 17: "#AC alignment check", 18: "#MC machine check",
    19: "#XM SIMD error", 20: "#VE virtualization", 21: "#CP control protection",
}  # fmt: skip

_CODE_OR_DATA = (
    "data, read-only", "data, read/write", "data, read-only, expand-down", "data, read/write, expand-down",
    "code, execute-only", "code, execute/read",
    "code, conforming, execute-only", "code, conforming, execute/read",
)  # fmt: skip
_SYSTEM = {
    1: "16-bit TSS", 2: "LDT", 3: "16-bit TSS (busy)", 4: "16-bit call gate", 5: "task gate",
    6: "16-bit interrupt gate", 7: "16-bit trap gate", 9: "TSS", 11: "TSS (busy)", 12: "call gate",
    14: "interrupt gate", 15: "trap gate",
}  # fmt: skip


def names(value: int, table: dict[int, str], unnamed: int = 0) -> str:
    """The names of the bits set in `value`, lowest first; a bit without one is "bit 26".

    Bits of the mask `unnamed` are left out.
    """
    rest = value & ~unnamed
    return " ".join(table.get(bit, f"bit {bit}") for bit in range(rest.bit_length()) if rest >> bit & 1)


def rflags_names(value: int) -> str:
    """RFLAGS in words, IOPL only where it is not 0."""
    iopl = value >> 12 & 3
    return " ".join(filter(None, (names(value, RFLAGS, RFLAGS_UNNAMED), f"IOPL={iopl}" if iopl else "")))


def segment_type(type: int, s: int) -> str:
    """What a segment of the 4-bit `type` is; `s` is 1 for code and data, 0 for system segments."""
    if s:
        return _CODE_OR_DATA[type >> 1 & 7]
    return _SYSTEM.get(type & 0xF, f"reserved system type {type & 0xF}")


def exception_name(vector: int) -> str:
    """An exception's mnemonic and name, or "interrupt 33" for what is none."""
    return EXCEPTIONS.get(vector, f"interrupt {vector}")
