"""A host that a test makes up: a tree for /proc, /sys and /dev, a user, and a KVM that answers as told."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pyvmm.kvm.host import HostView
from pyvmm.kvm.hostcheck import KVM_CHECK_EXTENSION, KVM_CREATE_VM, KVM_GET_API_VERSION

INTEL = "GenuineIntel"
AMD = "AuthenticAMD"
RELEASE = "6.1.0-13-amd64"


class FakeHost:
    """Everything is absent until it is set; `view()` is what the diagnosis is given."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sysname = "Linux"
        self.machine = "x86_64"
        self.release = RELEASE
        self.uid = 1000
        self.user = "ada"
        self.groups = frozenset({1000})
        self.environ: dict[str, str] = {}
        self.open_error = errno.ENOENT  # of /dev/kvm; 0 opens it
        self.api_version = 12
        self.missing: frozenset[int] = frozenset()
        self.create_error = 0
        self.open_fds: set[int] = set()

    def write(self, path: str, text: str | bytes = "") -> None:
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text.encode() if isinstance(text, str) else text)

    def cpu(self, vendor: str, flags: str) -> None:
        self.write(
            "/proc/cpuinfo",
            f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: A Processor\nflags\t\t: fpu {flags} lm\n\n"
            f"processor\t: 1\nvendor_id\t: {vendor}\nflags\t\t: other\n",
        )

    def module(self, name: str, **parameters: str) -> None:
        (self.root / "sys/module" / name / "parameters").mkdir(parents=True, exist_ok=True)
        for parameter, value in parameters.items():
            self.write(f"/sys/module/{name}/parameters/{parameter}", value + "\n")

    def node(self, mode: int, gid: int) -> None:
        """A /dev/kvm of that mode and group."""
        self.write("/dev/kvm")
        path = self.root / "dev/kvm"
        path.chmod(mode)
        self.gid = gid

    def usable(self, module: str = "kvm_intel") -> None:
        self.module(module)
        self.open_error = 0

    def _open(self, path: str, flags: int) -> int:
        assert path == str(self.root / "dev/kvm")
        assert flags & os.O_CLOEXEC and flags & os.O_RDWR
        if self.open_error:
            raise OSError(self.open_error, os.strerror(self.open_error))
        return self._fd()

    def _fd(self) -> int:
        fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self.open_fds.add(fd)
        return fd

    def _ioctl(self, fd: int, request: int, argument: int) -> int:
        assert fd in self.open_fds
        if request == KVM_GET_API_VERSION:
            if self.api_version < 0:
                raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
            return self.api_version
        if request == KVM_CHECK_EXTENSION:
            return int(argument not in self.missing)
        assert request == KVM_CREATE_VM and argument == 0
        if self.create_error:
            raise OSError(self.create_error, os.strerror(self.create_error))
        return self._fd()

    def view(self) -> HostView:
        uname = os.uname_result((self.sysname, "host", self.release, "#1 SMP", self.machine))
        view = FakeView(
            self.root,
            uname=uname,
            opener=self._open,
            ioctl=self._ioctl,
            uid=self.uid,
            user=self.user,
            groups=self.groups,
            environ=self.environ,
        )
        view.gid = getattr(self, "gid", 0)
        return view

    def leaked(self) -> list[int]:
        """Descriptors that were handed out and are still open."""
        return [fd for fd in self.open_fds if os.path.exists(f"/proc/self/fd/{fd}")]


class FakeView(HostView):
    """Gives files the group a test wants, which only root could set."""

    gid = 0

    def stat(self, path: str) -> os.stat_result:
        real = super().stat(path)
        return os.stat_result((*real[:5], self.gid, *real[6:10]))
