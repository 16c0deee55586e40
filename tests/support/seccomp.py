"""A seccomp filter (seccomp(2)) that makes system calls fail with EPERM, as container runtimes do."""

from __future__ import annotations

import ctypes
import struct

SYSTEM_CALLS = {
    "madvise": 28,
    "unshare": 272,
    "eventfd2": 290,
    "memfd_create": 319,
    "userfaultfd": 323,
    "io_uring_setup": 425,
}
"""Numbers of x86-64 (Linux, arch/x86/entry/syscalls/syscall_64.tbl)."""

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h
ALLOW, FAIL = 0x7FFF0000, 0x00050000  # linux/seccomp.h; FAIL takes the error number
EPERM = 1


def forbid(*names: str) -> None:
    """Let the system calls `names` fail in this process and all that it starts from now on."""
    code = [(LOAD, 0, 0, 0)]  # seccomp_data.nr
    for name in names:
        code += [(JUMP_IF_EQUAL, 0, 1, SYSTEM_CALLS[name]), (RETURN, 0, 0, FAIL | EPERM)]
    code.append((RETURN, 0, 0, ALLOW))
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in code))
    program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(code), ctypes.addressof(instructions)))
    libc = ctypes.CDLL(None, use_errno=True)
    for option, *arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program)):
        if libc.prctl(option, *arguments, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
