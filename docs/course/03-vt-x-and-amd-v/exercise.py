"""Exercises of lesson 3. Replace each `...` by your code; `pyvmm lesson check 3 .` says how far you are."""


def vmx_io(qualification: int) -> dict:
    """What the exit qualification of an IN or OUT says on VT-x (exit reason 30).

    A dict with "port" and "size" (1, 2 or 4 bytes), both int, and "in", "string" and "rep", all bool.
    """
    ...


def svm_io(exitinfo1: int) -> dict:
    """The same from EXITINFO1 of a VMCB (exit code 0x7b)."""
    ...


def io_exits(bitmap: bytes, port: int, size: int) -> bool:
    """Whether an access of `size` bytes at `port` exits.

    `bitmap` has 8,192 bytes, a bit for each port, the lowest port in bit 0 of byte 0. The access exits if the bit of
    any port that it touches is set. One that reaches beyond port 0xffff always exits.
    """
    ...
