"""Is /dev/kvm usable, and if not, why, and which line mends it? The diagnosis of `pyvmm doctor`.

May import its neighbours host.py, hostvirt.py and caps.py. Needs no compiled module: what it asks of KVM are ioctls
that take a plain number (KVM API document, 4.1, 4.2, 4.4). It looks at the system through a `HostView`, so that every
case is a test.
"""

from __future__ import annotations

import errno
import os

from pyvmm.kvm import caps
from pyvmm.kvm.constants import KVM_API_VERSION
from pyvmm.kvm.host import DEVICE, HostView
from pyvmm.kvm.hostvirt import Problem, explain_absence

# _IO(0xAE, n): include/uapi/linux/kvm.h
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_CHECK_EXTENSION = 0xAE03

KVM_DEVICE_NUMBER = "10 232"  # Documentation/admin-guide/devices.txt
NO_GROUP = 65534  # what a user namespace shows for a group it does not know

UDEV_RULE = 'KERNEL=="kvm", GROUP="kvm", MODE="0660", OPTIONS+="static_node=kvm"'


class BareKvm:
    """The few system ioctls that need no compiled module. Borrows the descriptor."""

    __slots__ = ("_fd", "_view")

    def __init__(self, view: HostView, fd: int) -> None:
        self._view = view
        self._fd = fd

    def api_version(self) -> int:
        return self._view.ioctl(self._fd, KVM_GET_API_VERSION)

    def check_extension(self, capability: int) -> int:
        return self._view.ioctl(self._fd, KVM_CHECK_EXTENSION, capability)

    def try_create_vm(self) -> None:
        os.close(self._view.ioctl(self._fd, KVM_CREATE_VM))


def diagnose(view: HostView | None = None) -> Problem | None:
    """Open /dev/kvm, ask for its version and capabilities, and make an empty VM. None if all of that works."""
    view = view or HostView()
    if view.uname.sysname != "Linux":
        return Problem(
            "platform", f"KVM is part of Linux, and this is {view.uname.sysname}", "run pyvmm on x86-64 Linux"
        )
    if view.uname.machine != "x86_64":
        return Problem(
            "architecture",
            f"pyvmm runs x86-64 guests, and this machine is {view.uname.machine}",
            "run pyvmm on x86-64 Linux",
        )
    try:
        fd = view.open(DEVICE, os.O_RDWR)
    except OSError as error:
        return explain_open(view, error.errno or 0)
    try:
        return _examine(view, BareKvm(view, fd))
    finally:
        os.close(fd)


def explain_open(view: HostView, error: int) -> Problem:
    """Why opening /dev/kvm failed with errno `error`."""
    if error in (errno.EACCES, errno.EPERM):
        return _no_permission(view, error)
    if error in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return _not_there(view)
    return _out_of(error, f"opening {DEVICE}") or Problem(
        "not-a-device",
        f"{DEVICE} cannot be opened as a device: {os.strerror(error)}",
        f"sudo rm -rf {DEVICE} && sudo mknod -m 660 {DEVICE} c {KVM_DEVICE_NUMBER}",
    )


def explain_create_vm(view: HostView, error: int) -> Problem:
    """Why KVM_CREATE_VM failed with errno `error`."""
    if error == errno.EBUSY:
        loaded = set(view.names("/sys/module"))
        if "vboxdrv" in loaded:
            holder, mend = "VirtualBox", "sudo modprobe -r vboxnetadp vboxnetflt vboxdrv"
        elif "vmmon" in loaded:
            holder, mend = "VMware", "sudo modprobe -r vmmon"
        else:
            holder, mend = "another hypervisor", "stop the other hypervisor and unload its kernel module"
        return Problem(
            "busy", f"{holder} holds the processor's virtualization (its machines must be stopped first)", mend
        )
    return _out_of(error, "making a virtual machine") or Problem(
        "refused", f"KVM does not make a virtual machine: {os.strerror(error)}", "sudo dmesg | grep -i kvm"
    )


def _examine(view: HostView, kvm: BareKvm) -> Problem | None:
    try:
        version = kvm.api_version()
    except OSError as error:
        return Problem(
            "not-a-device",
            f"{DEVICE} is not KVM: {os.strerror(error.errno or 0)}",
            f"sudo rm {DEVICE} && sudo mknod -m 660 {DEVICE} c {KVM_DEVICE_NUMBER}",
        )
    if version != KVM_API_VERSION:
        return Problem(
            "api-version",
            f"KVM speaks version {version} of its API, and pyvmm {KVM_API_VERSION}",
            "boot a kernel of Linux 4.18 or later",
        )
    missing = caps.missing_required(kvm)
    if missing:
        named = ", ".join(f"{row.name} ({row.use}; since Linux {row.since})" for row in missing)
        return Problem("capability", f"this kernel's KVM lacks {named}", "boot a kernel of Linux 4.18 or later")
    try:
        kvm.try_create_vm()
    except OSError as error:
        return explain_create_vm(view, error.errno or 0)
    return None


def _out_of(error: int, doing: str) -> Problem | None:
    mends = {
        errno.EMFILE: "ulimit -n 4096",
        errno.ENFILE: "sudo sysctl -w fs.file-max=1000000",
        errno.ENOMEM: "free memory, or raise the limit of the memory cgroup",
    }
    if error not in mends:
        return None
    return Problem("limit", f"{doing} failed: {os.strerror(error)}", mends[error])


def _no_permission(view: HostView, error: int) -> Problem:
    container = container_kind(view)
    try:
        stat = view.stat(DEVICE)
    except OSError:  # not even to be looked at
        stat = None
    if stat is None or error == errno.EPERM or view.uid == 0 or stat.st_gid == NO_GROUP:
        if container:
            return Problem("container", f"this container may not use {DEVICE}", CONTAINER_MENDS[container])
        return Problem(
            "forbidden",
            f"{DEVICE} is forbidden to this process by a device cgroup, a security module or a seccomp filter",
            "sudo dmesg | grep -i -e apparmor -e avc",
        )
    user = view.user()
    group, listed = view.group(stat.st_gid)
    line = f"{DEVICE} is for group {group} (mode {stat.st_mode & 0o777:04o}), "
    if stat.st_gid != 0 and stat.st_mode & 0o060 == 0o060:
        if listed:
            line += f"which user {user} has joined, but not yet in this session"
            return Problem("permission", line, f"newgrp {group}")
        line += f"which user {user} is not in"
        return Problem("permission", line, f"sudo usermod -aG {group} {user}", f"log in again, or run: newgrp {group}")
    return Problem(
        "permission",
        line + f"which is not for user {user}, and no rule gives it to a group of its own",
        f"sudo groupadd -f -r kvm && echo '{UDEV_RULE}' | sudo tee /etc/udev/rules.d/65-kvm.rules && "
        f"sudo udevadm control --reload && sudo udevadm trigger --name-match=kvm && sudo usermod -aG kvm {user}",
        "log in again, or run: newgrp kvm",
    )


def _not_there(view: HostView) -> Problem:
    release = view.uname.release
    container = container_kind(view)
    if view.exists("/sys/class/misc/kvm"):  # the kernel has it, only the node is missing
        if container:
            return Problem("container", f"this container was not given {DEVICE}", CONTAINER_MENDS[container])
        number = view.read("/sys/class/misc/kvm/dev").strip().replace(":", " ") or KVM_DEVICE_NUMBER
        return Problem("no-node", f"KVM runs, but there is no {DEVICE}", f"sudo mknod -m 660 {DEVICE} c {number}")
    problem = explain_absence(view, release)
    if container:
        problem.line = f"no KVM on the host of this container: {problem.line}"
        problem.then = f"on that host; and start the container so: {CONTAINER_MENDS[container]}"
    return problem


CONTAINER_MENDS = {
    "docker": "docker run --device /dev/kvm IMAGE",
    "podman": "podman run --device /dev/kvm --group-add keep-groups IMAGE",
    "kubernetes": "give the pod /dev/kvm by a device plugin, or a hostPath volume with privileged: true",
    "lxc": "lxc config device add NAME kvm unix-char source=/dev/kvm path=/dev/kvm",
    "systemd-nspawn": "systemd-nspawn --bind=/dev/kvm --property=DeviceAllow='/dev/kvm rw' -D DIRECTORY",
    "container": "start the container with the device /dev/kvm",
}


def container_kind(view: HostView) -> str:
    """What sort of container this process is in, a key of CONTAINER_MENDS; "" outside of one, as far as can be seen."""
    if view.environ.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    if view.exists("/.dockerenv") and not _root_is_a_disk(view):
        return "docker"
    if view.exists("/run/.containerenv"):
        return "podman"
    named = view.read("/run/systemd/container").strip() or view.environ.get("container", "")
    groups = view.read("/proc/1/cgroup")
    for kind, words in (
        ("kubernetes", ("kubepods",)),
        ("docker", ("/docker",)),
        ("podman", ("libpod",)),
        ("lxc", ("/lxc",)),
    ):
        if any(word in groups for word in words):
            return kind
    if named:
        return named if named in CONTAINER_MENDS else "container"
    return ""


def _root_is_a_disk(view: HostView) -> bool:
    """Whether / is a block device: then /.dockerenv is only left from the image that a virtual machine was made of."""
    for line in view.read("/proc/self/mountinfo").splitlines():
        mount, _, origin = line.partition(" - ")
        if mount.split()[4:5] == ["/"]:
            return any(word.startswith("/dev/") for word in origin.split()[1:2])
    return False
