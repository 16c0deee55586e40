"""Why a kernel has no KVM at all: the module, the firmware's switch, or a hypervisor below that gives none on.

May import host.py. The second half of hostcheck.py's diagnosis, for when there is no device; looks at the system
through a `HostView`.
"""

from __future__ import annotations

import os

from pyvmm.kvm.host import HostView

IA32_FEATURE_CONTROL = 0x3A  # SDM volume 4, 2.1: bit 0 locks, bit 2 allows VMX outside SMX
VM_CR = 0xC0010114  # AMD APM volume 2, 15.30.1: bit 4 is SVMDIS

# /proc/cpuinfo's vendor_id, for the module that drives such a processor, its flag, and the feature's name in firmware.
_INTEL = ("kvm_intel", "vmx", "Intel VT-x (Virtualization Technology)")
_AMD = ("kvm_amd", "svm", "AMD-V (SVM Mode)")
VENDORS = {
    "GenuineIntel": _INTEL,
    "CentaurHauls": _INTEL,
    "  Shanghai  ": _INTEL,
    "AuthenticAMD": _AMD,
    "HygonGenuine": _AMD,
}

# What DMI or the kernel's log calls a hypervisor, with the line that makes it give virtualization on to this machine.
NESTING = (
    ("VMware", "VMware", 'set vhv.enable = "TRUE" in the machine\'s .vmx file'),
    ("VirtualBox", "VirtualBox", "VBoxManage modifyvm NAME --nested-hw-virt on"),
    ("innotek", "VirtualBox", "VBoxManage modifyvm NAME --nested-hw-virt on"),
    ("Google", "Google Compute Engine", "gcloud compute instances update NAME with enableNestedVirtualization: true"),
    ("Amazon", "Amazon EC2", "use an instance type with nested virtualization, or a .metal one"),
    ("Parallels", "Parallels", "prlctl set NAME --nested-virt on"),
    ("Xen", "Xen", "set nestedhvm=1 in the domain's configuration"),
    ("Microsoft", "Hyper-V", "Set-VMProcessor -VMName NAME -ExposeVirtualizationExtensions $true"),
    ("KVM", "KVM", "sudo modprobe -r {module} && sudo modprobe {module} nested=1"),
    ("QEMU", "KVM", "sudo modprobe -r {module} && sudo modprobe {module} nested=1"),
)


class Problem:
    """Why KVM cannot be used.

    cause  a word for programs: one of those listed in docs/doctor.md
    line   what is wrong, one sentence without a full stop
    mend   what mends it: a command for a shell, or words where no command does
    then   what is left to do after that, or ""
    """

    __slots__ = ("cause", "line", "mend", "then")

    def __init__(self, cause: str, line: str, mend: str, then: str = "") -> None:
        self.cause = cause
        self.line = line
        self.mend = mend
        self.then = then

    def __str__(self) -> str:
        return f"{self.line}; to mend it: {self.mend}" + (f"; then {self.then}" if self.then else "")


def explain_absence(view: HostView, release: str) -> Problem:
    """Why this kernel, of Linux `release`, has no KVM device."""
    flags = view.cpu_flags()
    module, flag, feature = VENDORS.get(view.cpuinfo("vendor_id"), _INTEL)
    if "microsoft" in release.lower():
        if "WSL2" not in release:
            return Problem("wsl", "WSL 1 has no Linux kernel, hence no KVM", "wsl --set-version DISTRIBUTION 2")
        if flag not in flags:
            return _wsl2()
    if firmware_off(view, flag):
        return _firmware(f"{feature} is switched off in the firmware", feature)
    if flag in flags:
        return _module(view, release, module)
    if "hypervisor" in flags:
        return _nested(view, module, feature)
    return _firmware(f"the processor shows no {feature}: it is switched off in the firmware, or there is none", feature)


def firmware_off(view: HostView, flag: str) -> bool:
    """Whether the kernel's log or the processor's own register says that firmware has switched virtualization off."""
    for line in kernel_log(view).lower().splitlines():
        if "bios" in line and ("disabled" in line or "not enabled" in line) and ("kvm" in line or flag in line):
            return True
    if flag == "vmx":
        control = read_msr(view, IA32_FEATURE_CONTROL)
        return control is not None and control & 0b101 == 0b001  # locked, and VMX not allowed
    control = read_msr(view, VM_CR)
    return control is not None and bool(control & 1 << 4)


def read_msr(view: HostView, index: int) -> int | None:
    """An MSR of the first processor by /dev/cpu/0/msr; None if that may not be read."""
    try:
        fd = os.open(view.path("/dev/cpu/0/msr"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.pread(fd, 8, index)
    except OSError:
        return None
    finally:
        os.close(fd)
    return int.from_bytes(data, "little") if len(data) == 8 else None


def kernel_log(view: HostView) -> str:
    """The kernel's log by /dev/kmsg, one record a line; "" if that may not be read."""
    try:
        fd = os.open(view.path("/dev/kmsg"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    records = []
    try:
        for _ in range(100_000):
            try:
                record = os.read(fd, 8192)
            except BrokenPipeError:  # records were overwritten meanwhile; the next read goes on behind them
                continue
            if not record:
                break
            records.append(record)
    except OSError:  # EAGAIN: no more for now
        pass
    finally:
        os.close(fd)
    return b"".join(records).decode("utf-8", "replace")


def _wsl2() -> Problem:
    return Problem(
        "wsl",
        "WSL 2 does not give virtualization on",
        "write nestedVirtualization=true under [wsl2] in %UserProfile%\\.wslconfig",
        "run: wsl --shutdown",
    )


def _firmware(line: str, feature: str) -> Problem:
    return Problem("firmware", line, f"enable {feature} in the firmware's setup", "switch the machine off and on again")


def _module(view: HostView, release: str, module: str) -> Problem:
    folder = f"/lib/modules/{release}"
    known = view.read(f"{folder}/modules.dep", 1 << 24) + view.read(f"{folder}/modules.builtin", 1 << 24)
    if known and f"/{module.replace('_', '-')}.ko" not in known:
        return Problem(
            "no-module",
            f"Linux {release} was built without {module}",
            "boot a distribution's ordinary kernel, or build one with CONFIG_KVM",
        )
    if not known and view.names("/lib/modules"):
        return Problem(
            "no-module",
            f"the modules of the running Linux {release} are gone, as after an update of the kernel",
            "sudo reboot",
        )
    return Problem("module", f"the kernel module {module} is not loaded", f"sudo modprobe {module}")


def _nested(view: HostView, module: str, feature: str) -> Problem:
    names = " ".join(view.read(f"/sys/class/dmi/id/{field}") for field in ("sys_vendor", "product_name"))
    names += view.read("/sys/hypervisor/type").title()
    for line in kernel_log(view).splitlines():
        if "Hypervisor detected:" in line:
            names += line.partition("detected:")[2]
    for word, hypervisor, mend in NESTING:
        if word in names:
            then = "restart this machine with -cpu host" if hypervisor == "KVM" else "restart this machine"
            return Problem(
                "nested",
                f"this is a virtual machine, and {hypervisor} below it does not give {feature} on",
                mend.format(module=module),
                f"{then}; the command is for the machine that runs this one",
            )
    return Problem(
        "nested",
        f"this is a virtual machine, and the hypervisor below it does not give {feature} on",
        "switch nested virtualization on there",
        "restart this machine",
    )
