"""`Kvm`: /dev/kvm itself, the requests that concern the whole host.

Imports the rest of pyvmm.kvm. Follows the KVM API document (Documentation/virt/kvm/api.rst), section 4, "system ioctl".
"""

from __future__ import annotations

import os
from errno import EACCES, EBUSY, ENODEV, ENOENT, ENXIO, EPERM

from pyvmm.errors import KvmError, KvmUnavailableError
from pyvmm.kvm import native
from pyvmm.kvm.causes import cause
from pyvmm.kvm.constants import KVM_API_VERSION
from pyvmm.kvm.descriptor import Descriptor
from pyvmm.kvm.entries import CpuidEntry
from pyvmm.kvm.vcpustate import cpuid_entries
from pyvmm.kvm.vm import VmFd

DEVICE = "/dev/kvm"


class Kvm(Descriptor):
    """The KVM of this host."""

    __slots__ = ()

    def __init__(self, path: str = DEVICE) -> None:
        """Opens `path`. Raises KvmUnavailableError with the reason where KVM cannot be used."""
        native.require()
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise _unavailable(_why_not_opened(path, error), error.errno) from None
        super().__init__(fd)
        try:
            version = self.api_version()
        except KvmError as error:
            self.close()
            raise _unavailable(f"{path} is not KVM: {error}", error.errno) from None
        if version != KVM_API_VERSION:
            self.close()
            raise KvmUnavailableError(f"{path} speaks version {version} of the KVM API, not {KVM_API_VERSION}")

    def api_version(self) -> int:
        """The version of the KVM API: 12 since Linux 2.6.22 (4.1)."""
        return self.ioctl("KVM_GET_API_VERSION")

    def check_extension(self, capability: int) -> int:
        """What KVM says to one of KVM_CAP_: 0 if it lacks the capability, else 1 or a number that it defines (4.4)."""
        return self.ioctl("KVM_CHECK_EXTENSION", capability)

    def create_vm(self) -> VmFd:
        """A new VM without memory or vCPUs (4.2).

        Raises KvmUnavailableError where another hypervisor holds the processor, KvmError otherwise.
        """
        mmap_size = self.vcpu_mmap_size()
        try:
            fd = self.ioctl("KVM_CREATE_VM", 0)
        except KvmError as error:
            if error.errno == EBUSY:
                from pyvmm.kvm.host import HostView
                from pyvmm.kvm.hostcheck import explain_create_vm

                raise _unavailable(str(explain_create_vm(HostView(), EBUSY)), EBUSY) from None
            raise
        return VmFd(fd, mmap_size)

    def vcpu_mmap_size(self) -> int:
        """Bytes of the map that a vCPU shares with user space (4.5)."""
        return self.ioctl("KVM_GET_VCPU_MMAP_SIZE")

    def supported_cpuid(self) -> list[CpuidEntry]:
        """The CPUID leaves and bits that this host and its KVM can give to a guest (4.46)."""
        return self._cpuid("KVM_GET_SUPPORTED_CPUID")

    def emulated_cpuid(self) -> list[CpuidEntry]:
        """The CPUID bits of instructions that KVM only emulates (4.88)."""
        return self._cpuid("KVM_GET_EMULATED_CPUID")

    def msr_index_list(self) -> list[int]:
        """The MSRs that make up a vCPU's state (4.3)."""
        return self._msr_list("KVM_GET_MSR_INDEX_LIST")

    def msr_feature_index_list(self) -> list[int]:
        """The MSRs that describe features of the host (4.3)."""
        return self._msr_list("KVM_GET_MSR_FEATURE_INDEX_LIST")

    def _cpuid(self, name: str) -> list[CpuidEntry]:
        state = self._get_list(name, "kvm_cpuid2", "nent", "entries")
        return cpuid_entries(state)

    def _msr_list(self, name: str) -> list[int]:
        state = self._get_list(name, "kvm_msr_list", "nmsrs", "indices")
        return [int(state.indices[i]) for i in range(state.nmsrs)]


def _unavailable(text: str, errno: int | None) -> KvmUnavailableError:
    error = KvmUnavailableError(text)
    error.errno = errno
    return error


def _why_not_opened(path: str, error: OSError) -> str:
    """One line: why `path` cannot be opened, and what mends it."""
    number = error.errno or 0
    if path == DEVICE and number in (ENOENT, EACCES, EPERM, ENXIO, ENODEV):
        from pyvmm.kvm.host import HostView
        from pyvmm.kvm.hostcheck import explain_open

        return str(explain_open(HostView(), number))
    hint = cause("open", number)
    return f"{path} cannot be opened: {error.strerror}{'; ' if hint else ''}{hint}"
