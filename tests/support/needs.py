"""What a test may need of the machine, and whether this machine has it.

`@pytest.mark.needs("kvm", "gcc")` names requirements from REQUIREMENTS. A test whose requirement is missing
is skipped, counted and named at the end of the run, or fails where PYVMM_REQUIRE=kvm,gcc,... lists it.
PYVMM_NO_KVM=1 says that this machine has no KVM, whatever /dev/kvm says.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable

from tests.support import hugepages

KVM_GET_API_VERSION = 0xAE00  # _IO(KVMIO, 0), linux/kvm.h
KVM_API_VERSION = 12  # Documentation/virt/kvm/api.rst, 4.1

Check = Callable[[], str]
"""Says why the machine lacks something: one line, or "" where it has it."""


def _kvm() -> str:
    if os.environ.get("PYVMM_NO_KVM") == "1":
        return "PYVMM_NO_KVM=1"
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    try:
        version = fcntl.ioctl(fd, KVM_GET_API_VERSION)
    except OSError as error:
        return f"/dev/kvm is not KVM: {errno.errorcode.get(error.errno or 0, error.errno)}"
    finally:
        os.close(fd)
    return "" if version == KVM_API_VERSION else f"KVM API version {version}, not {KVM_API_VERSION}"


def _program(*names: str) -> Check:
    def check() -> str:
        return "" if any(map(shutil.which, names)) else f"{' or '.join(names)} is not installed"

    return check


def _module(name: str) -> Check:
    def check() -> str:
        return "" if importlib.util.find_spec(name) else f"the Python module {name} is not installed"

    return check


def _file(path: str, package: str) -> Check:
    def check() -> str:
        return "" if os.path.exists(path) else f"the package {package} is not installed"

    return check


def _net_namespace() -> str:
    command = ["unshare", "--user", "--map-root-user", "--net", "true"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError as error:
        return f"unshare: {error.strerror}"
    return "" if result.returncode == 0 else result.stderr.strip() or f"unshare ended with {result.returncode}"


def _tap() -> str:
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun may not be used or is not there"
    return _net_namespace() or _program("ip")()


def _tiny_image() -> str:
    from pyvmm.errors import PyvmmError
    from pyvmm.images import image

    try:
        image("tiny")
    except PyvmmError as error:
        return str(error)
    return ""


REQUIREMENTS: dict[str, Check] = {
    "huge-pages": hugepages.missing,
    "kvm": _kvm,
    "gcc": _program("gcc"),
    "clang": _program("clang"),
    "git": _program("git"),
    "make": _program("make"),
    "qemu": _program("qemu-system-x86_64"),
    "passt": _program("passt"),
    "net-namespace": _net_namespace,
    "tap": _tap,
    "gdb": _program("gdb"),
    "iasl": _program("iasl"),
    "cpio": _program("cpio"),
    "dpkg-deb": _program("dpkg-deb"),
    "chromium": _program("chromium", "chromium-browser"),
    "capstone": _module("capstone"),
    "coverage": _module("coverage"),
    "mkdocs": _module("material"),
    "tiny-image": _tiny_image,
    "mke2fs": _file("/usr/sbin/mke2fs", "e2fsprogs"),
    "busybox": _file("/bin/busybox", "busybox-static"),
    "fio": _file("/usr/bin/fio", "fio"),
    "invaders": _file("/boot/invaders.exec", "grub-invaders"),
    "root": lambda: "" if os.geteuid() == 0 else "this user is not root",
    "unprivileged": lambda: "" if os.geteuid() != 0 else "root may do everything",
}


@functools.cache
def missing(name: str) -> str:
    """Why this machine lacks requirement `name`, or "". Raises KeyError for a name that nobody declared."""
    return REQUIREMENTS[name]()


def required() -> frozenset[str]:
    """The requirements that PYVMM_REQUIRE says this machine must have."""
    names = os.environ.get("PYVMM_REQUIRE", "").replace(",", " ").split()
    return frozenset(names) - ({"kvm"} if os.environ.get("PYVMM_NO_KVM") == "1" else frozenset())
