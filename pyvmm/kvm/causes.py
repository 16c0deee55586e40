"""The usual causes of failing ioctls, one table of them. Imports errno alone.

Facts from the errors that the KVM API document lists with each request (Documentation/virt/kvm/api.rst).
"""

from __future__ import annotations

from errno import (
    E2BIG,
    EAGAIN,
    EBADF,
    EBUSY,
    EEXIST,
    EFAULT,
    EINVAL,
    EIO,
    EMFILE,
    ENFILE,
    ENOMEM,
    ENOSYS,
    ENOTTY,
    ENXIO,
    EPERM,
)

OF_IOCTL: dict[tuple[str, int], str] = {
    ("KVM_CREATE_VM", EBUSY): "another hypervisor (VirtualBox, VMware) holds the processor's virtualization",
    ("KVM_CREATE_VM", ENOMEM): "the host has too little memory left, or the memory cgroup is full",
    ("KVM_CREATE_VCPU", EEXIST): "this VM already has a vCPU of that index",
    ("KVM_CREATE_VCPU", EINVAL): "the index is not below KVM_CAP_MAX_VCPU_ID, or the VM has its most vCPUs already",
    ("KVM_CREATE_IRQCHIP", EEXIST): "this VM already has its interrupt controllers",
    ("KVM_CREATE_IRQCHIP", EINVAL): "the interrupt controllers must be made before the first vCPU",
    ("KVM_CREATE_PIT2", ENXIO): "the in-kernel interrupt controllers must be made first",
    ("KVM_CREATE_PIT2", EEXIST): "this VM already has its PIT",
    ("KVM_SET_TSS_ADDR", EINVAL): "the three pages must lie below 4 GiB",
    ("KVM_SET_IDENTITY_MAP_ADDR", EINVAL): "it must be set before the first vCPU is made",
    ("KVM_SET_USER_MEMORY_REGION", EEXIST): "the region overlaps another slot",
    ("KVM_SET_USER_MEMORY_REGION", EINVAL): (
        "address, length and buffer must be whole pages, the slot below KVM_CAP_NR_MEMSLOTS, "
        "and a slot's length cannot change while it exists"
    ),
    ("KVM_GET_DIRTY_LOG", EINVAL): "the slot does not log dirty pages (KVM_MEM_LOG_DIRTY_PAGES)",
    ("KVM_IRQ_LINE", ENXIO): "the VM has no in-kernel interrupt controllers",
    ("KVM_IRQFD", EINVAL): "the VM has no in-kernel interrupt controllers, or no route has this GSI",
    ("KVM_IRQFD", EBUSY): "the eventfd is already bound to a GSI of this VM",
    ("KVM_IOEVENTFD", EEXIST): "the address already has an ioeventfd with this length and datamatch",
    ("KVM_SET_GSI_ROUTING", EINVAL): "a route names a GSI, chip or pin that does not exist",
    ("KVM_SET_TSC_KHZ", EINVAL): "this host cannot scale the guest's TSC",
    ("KVM_INTERRUPT", ENXIO): "the VM has in-kernel interrupt controllers: use irq_line or an irqfd",
    ("KVM_INTERRUPT", EEXIST): "an interrupt is already waiting to be delivered",
    ("KVM_GET_LAPIC", EINVAL): "the VM has no in-kernel interrupt controllers",
    ("KVM_SET_LAPIC", EINVAL): "the VM has no in-kernel interrupt controllers",
    ("KVM_SET_CPUID2", E2BIG): "too many CPUID entries",
    ("KVM_SET_CPUID2", EINVAL): "CPUID cannot change once the vCPU has run",
    ("KVM_SET_SREGS", EINVAL): "the control registers, EFER and the segments contradict each other",
    ("KVM_SET_SREGS2", EINVAL): "the control registers, EFER and the segments contradict each other",
    ("KVM_ENABLE_CAP", EINVAL): "this host's KVM lacks the capability, or not with these arguments",
    ("KVM_REGISTER_COALESCED_MMIO", ENOMEM): "the VM has its most coalesced zones already",
    ("KVM_RUN", ENOMEM): "the host has too little memory left, or the memory cgroup is full",
    ("KVM_RUN", EFAULT): "KVM could not reach the memory behind a slot",
    ("KVM_RUN", EAGAIN): "the host lets KVM start no thread for this VM (a pids cgroup, ulimit -u)",
    ("KVM_RUN", EIO): "the VM is broken after an earlier error",
    ("KVM_SET_GUEST_DEBUG", EBUSY): "an exception is already waiting to be delivered",
    ("KVM_CREATE_DEVICE", EEXIST): "a VM can have only one such device",
}
"""What an errno usually means for one ioctl."""

OF_ERRNO: dict[int, str] = {
    E2BIG: "the list is too long",
    EBADF: "it has been closed",
    EIO: "the VM is broken after an earlier error, or belongs to another process",
    EMFILE: "this process has as many files open as it may (ulimit -n)",
    ENFILE: "the whole host has as many files open as it may (fs.file-max)",
    ENOMEM: "the host has too little memory left",
    ENOSYS: "this host's KVM does not have it",
    ENOTTY: "this host's KVM does not have it",
    EPERM: "this process may not (a seccomp filter or a missing privilege)",
}
"""What an errno usually means for any ioctl."""


def cause(ioctl: str, error: int) -> str:
    """The usual cause, one line, or "" where none is known."""
    return OF_IOCTL.get((ioctl, error)) or OF_ERRNO.get(error, "")
