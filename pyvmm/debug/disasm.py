"""Machine code as text, by capstone where the extra `debug` is installed.

Imports errors; capstone inside the function that needs it.
"""

from __future__ import annotations

from pyvmm.errors import MissingExtraError


class Instruction:
    """One instruction: linear `address`, its `code` bytes, `mnemonic` and `operands` in Intel syntax."""

    __slots__ = ("address", "code", "mnemonic", "operands")

    def __init__(self, address: int, code: bytes, mnemonic: str, operands: str) -> None:
        self.address = address
        self.code = code
        self.mnemonic = mnemonic
        self.operands = operands

    @property
    def text(self) -> str:
        """Mnemonic and operands."""
        return f"{self.mnemonic} {self.operands}".rstrip()


def disassemble(code: bytes, address: int, bits: int, limit: int = 8) -> list[Instruction]:
    """Up to `limit` instructions of 16-, 32- or 64-bit `code` that lies at `address`; stops at what is none.

    Raises MissingExtraError without capstone.
    """
    try:
        import capstone
    except ImportError:
        raise MissingExtraError("disassembly", "capstone", "debug") from None

    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[bits]
    decoder = capstone.Cs(capstone.CS_ARCH_X86, mode)
    return [
        Instruction(at, code[at - address : at - address + size], mnemonic, operands)
        for at, size, mnemonic, operands in decoder.disasm_lite(code, address, limit)
    ]
