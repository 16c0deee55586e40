"""What the four kinds of KVM descriptor have in common: ioctls by name, errors that say why, one way to close.

Imports the compiled module (through native.py), causes and errors. Lists of variable length are handled here alone.
"""

from __future__ import annotations

import os
from errno import E2BIG

from pyvmm.errors import KvmError
from pyvmm.kvm.causes import cause
from pyvmm.kvm.native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, TypeVar

    Self = TypeVar("Self", bound="Descriptor")

LIKELY_LIST = 256
"""Entries asked for at first: a list that does not fit is made in vain, which for CPUID takes half a millisecond."""
LONGEST_LIST = 1 << 16
"""Entries of a list that a kernel may ask for. The longest known ones have a few hundred."""


def check(result: int, ioctl: str) -> int:
    """`result`, unless it is minus an error number: then KvmError for `ioctl` (its name)."""
    if result < 0:
        raise KvmError(ioctl, -result, cause(ioctl, -result))
    return result


class Descriptor:
    """A file descriptor that KVM gave out, closed on exec. A context manager; closing twice is no error."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        """Takes over `fd`."""
        self._fd = fd

    def fileno(self) -> int:
        """The descriptor's number, or -1 once closed."""
        return self._fd

    def ioctl(self, name: str, argument: Any = 0) -> int:
        """The ioctl called `name` (as in the KVM API document) with a number or a cffi pointer; its result.

        Raises KvmError.
        """
        request = getattr(lib, name)
        if type(argument) is int:
            return check(lib.pyvmm_ioctl(self._fd, request, argument), name)
        return check(lib.pyvmm_ioctl_ptr(self._fd, request, argument), name)

    def _get(self, name: str, record: str) -> Any:
        """A new structure `record`, filled by the ioctl called `name`."""
        state = ffi.new(f"struct {record} *")
        self.ioctl(name, state)
        return state

    def _get_list(self, name: str, record: str, count: str, entries: str) -> Any:
        """A list structure filled by the ioctl called `name`, grown until all fits.

        `count` and `entries` are the structure's fields. Where the list is too short KVM says E2BIG, and some requests
        then put the length they need into `count`.
        """
        length = LIKELY_LIST
        while True:
            state = ffi.new(f"struct {record} *", {count: length, entries: length})
            try:
                self.ioctl(name, state)
                return state
            except KvmError as error:
                if error.errno != E2BIG or length >= LONGEST_LIST:
                    raise
            wanted = getattr(state, count)
            length = wanted if length < wanted <= LONGEST_LIST else length * 2

    def close(self) -> None:
        """Close the descriptor."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Only for who forgot: close() is the way, in an order that the owner of the VM decides.
        if getattr(self, "_fd", -1) >= 0:
            self.close()


class Attributes(Descriptor):
    """A descriptor with device attributes (KVM API, 4.80, 4.81): devices and vCPUs."""

    __slots__ = ()

    def has_attribute(self, group: int, attribute: int) -> bool:
        """Whether the descriptor has this attribute."""
        request = ffi.new("struct kvm_device_attr *", {"group": group, "attr": attribute})
        return lib.pyvmm_ioctl_ptr(self._fd, lib.KVM_HAS_DEVICE_ATTR, request) == 0

    def get_attribute(self, group: int, attribute: int) -> int:
        """The value of a 64-bit attribute. Raises KvmError."""
        value = ffi.new("uint64_t *")
        self._attribute("KVM_GET_DEVICE_ATTR", group, attribute, value)
        return int(value[0])

    def set_attribute(self, group: int, attribute: int, value: int) -> None:
        """Set a 64-bit attribute. Raises KvmError."""
        self._attribute("KVM_SET_DEVICE_ATTR", group, attribute, ffi.new("uint64_t *", value))

    def _attribute(self, name: str, group: int, attribute: int, value: Any) -> None:
        address = int(ffi.cast("uintptr_t", value))
        self.ioctl(name, ffi.new("struct kvm_device_attr *", {"group": group, "attr": attribute, "addr": address}))
