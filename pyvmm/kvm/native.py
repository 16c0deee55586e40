"""The compiled module `_kvm`, or the reason why there is none.

Imports pyvmm._native and errors. Everything in pyvmm.kvm that needs the compiled module takes it from here, so that it
imports without one too (another platform, a checkout that was never built) and fails only when used.
"""

from __future__ import annotations

import sys

from pyvmm.errors import KvmUnavailableError

TYPE_CHECKING = False
PROBLEM = ""
"""Why the compiled module is missing: one line, or "" where it is there."""

if TYPE_CHECKING:
    from pyvmm._native._kvm import ffi as ffi
    from pyvmm._native._kvm import lib as lib
else:
    try:
        from pyvmm._native._kvm import ffi, lib
    except ImportError as error:
        ffi = lib = None
        if sys.platform != "linux":
            PROBLEM = f"KVM is part of Linux, and this is {sys.platform}"
        else:
            PROBLEM = f"the extension module pyvmm._native._kvm is not built here (pip install . builds it): {error}"


def require() -> None:
    """Raises KvmUnavailableError where there is no compiled module."""
    if PROBLEM:
        raise KvmUnavailableError(PROBLEM)


def constant(name: str) -> int:
    """A number that run_abi.h defines; 0 without the compiled module."""
    number: int = 0 if PROBLEM else getattr(lib, name)
    return number


def offsetof(record: str, *fields: str) -> int:
    """Bytes from the start of a structure of kvm_abi.h to one of its fields; 0 without the compiled module."""
    return 0 if PROBLEM else ffi.offsetof(record, *fields)


def sizeof(record: str) -> int:
    """Bytes of a structure of kvm_abi.h; 0 without the compiled module."""
    return 0 if PROBLEM else ffi.sizeof(record)
