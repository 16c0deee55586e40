"""`--root`, `--rwdir` and `--modules`: directories of the host's that a command in the guest sees.

May import hardware, options and errors. Each is a 9p share. The agent mounts them, and what it has mounted by --root
becomes its root file system: programs, users and paths are that one's from then on.
"""

from __future__ import annotations

import errno
import os

from pyvmm.cli.options import split_commas
from pyvmm.errors import GuestAgentError, PyvmmError, UsageError
from pyvmm.hardware import Share

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyvmm.guest.session import Guest

NONE = "none"
"""The --root that is the initramfs."""
MOUNTS = "/proc/self/mountinfo"
STAGE = "/run"
"""Where in the initramfs the new root is put together."""
NEW = f"{STAGE}/root"
NINE = "trans=virtio,version=9p2000.L,msize=262144"
KEPT = f"{NINE},cache=loose"
"""For what does not change while the guest runs."""
SHARED = f"{NINE},cache=mmap"
"""For what others change too; programs may map its files."""
READ_ONLY = 1
"""MS_RDONLY of mount(2)."""
OWN = ("/proc", "/sys", "/dev")
"""What the guest has by itself, whatever the host has there."""
LACKING = {
    "overlay": "CONFIG_OVERLAY_FS",
    "tmpfs": "CONFIG_TMPFS",
    "proc": "CONFIG_PROC_FS",
    "sysfs": "CONFIG_SYSFS",
    "devtmpfs": "CONFIG_DEVTMPFS",
    "9p": "CONFIG_9P_FS",
}
"""What a kernel does not have that knows no file system of that type (ENODEV of mount(2))."""
NO_TRANSPORT = (errno.EINVAL, errno.ENOENT, errno.EPROTONOSUPPORT)
"""What mounting by 9p gives where CONFIG_NET_9P_VIRTIO is missing (Linux's net/9p/client.c and trans_virtio.c)."""


class GuestFiles:
    """What --root, --rwdir and --modules say.

    root     the host's directory, or "" for the initramfs
    overlay  whether the guest may change what it sees there; it is forgotten at the end
    folder   where the command starts: the current folder if the guest sees it, else /
    """

    def __init__(self, root: str = NONE, rwdirs: Sequence[str] = (), modules: str = "") -> None:
        """Raises UsageError for a directory that is not there or cannot be meant."""
        self.root, self.overlay = "", False
        if root != NONE:
            path, *modes = split_commas(root)
            if len(modes) > 1 or not set(modes) <= {"ro", "overlay"}:
                raise UsageError(f"--root {root}: expected DIR, DIR,ro or DIR,overlay (a comma in a path is doubled)")
            self.root, self.overlay = directory("--root", path), modes != ["ro"]
        self._work = [directory("--rwdir", path) for path in rwdirs]
        for given, path in zip(rwdirs, self._work, strict=True):
            if self._inside(path) in (None, "/"):
                raise UsageError(f"--rwdir {given}: expected a directory below --root {self.root or '/'}")
        self._modules = modules_of(modules) if modules else ""
        here = os.getcwd()
        seen = bool(self.root) or any(here == path or here.startswith(path + "/") for path in self._work)
        self.folder = (seen and self._inside(here)) or "/"
        self._layers = list(self._on_the_way(here)) if self.root else []

    def _inside(self, path: str) -> str | None:
        """Where the guest has the host's `path`, or None."""
        prefix = self.root.rstrip("/")
        return path[len(prefix) :] or "/" if path == self.root or path.startswith(prefix + "/") else None

    def _on_the_way(self, path: str) -> Iterator[str]:
        """The root, and each file system that is mounted in it on the way to `path`: a share shows one alone."""
        yield self.root
        if self._inside(path) is None:
            return
        for point in sorted(set(mount_points())):
            inside = self._inside(point) or "/"
            if inside != "/" and f"{path}/".startswith(f"{point}/") and f"/{inside.split('/')[1]}" not in OWN:
                yield point

    def shares(self) -> list[Share]:
        """The shares that the VM needs for it."""
        found = [Share(path, f"pyvmm-root{number}", readonly=True) for number, path in enumerate(self._layers)]
        found += [Share(path, f"pyvmm-rw{number}") for number, path in enumerate(self._work)]
        if self._modules:
            found.append(Share(self._modules, "pyvmm-modules", readonly=True))
        return found

    def mount(self, guest: Guest) -> None:
        """Have the guest mount it all. Raises PyvmmError with what it lacks."""
        try:
            if self.root:
                self._mount_root(guest)
            if self._modules:
                _mount(guest, "pyvmm-modules", "/lib/modules", "9p", KEPT, READ_ONLY)
            for number, path in enumerate(self._work):
                _mount(guest, f"pyvmm-rw{number}", self._inside(path) or "/", "9p", SHARED)
        except GuestAgentError as error:
            raise PyvmmError(str(error)) from error  # not the command's fault, which would have a status of its own

    def _mount_root(self, guest: Guest) -> None:
        for number, path in enumerate(self._layers):
            target = f"{NEW}{self._inside(path) or ''}".rstrip("/")
            tag = f"pyvmm-root{number}"
            if not self.overlay:
                _mount(guest, tag, target, "9p", KEPT, READ_ONLY)
                continue
            lower, over = f"{STAGE}/lower{number}", f"{STAGE}/over{number}"
            _mount(guest, tag, lower, "9p", KEPT, READ_ONLY)
            _mount(guest, "tmpfs", over, "tmpfs", "mode=755")
            for part in ("upper", "work"):
                guest.mount("", f"{over}/{part}", "")
            _mount(guest, "overlay", target, "overlay", f"lowerdir={lower},upperdir={over}/upper,workdir={over}/work")
        guest.change_root(NEW)
        for kind, path in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")):
            _mount(guest, kind, path, kind)
        used = (self.folder, *(self._inside(path) or "/" for path in self._work))
        for path in ("/dev/shm", "/run", *(() if self.overlay else ("/tmp",))):
            if not any(f"{other}/".startswith(f"{path}/") for other in used):
                try:
                    _mount(guest, "tmpfs", path, "tmpfs", "mode=755" if path == "/run" else "mode=1777")
                except GuestAgentError:
                    pass  # it has no such folder, and may not make it


def directory(option: str, path: str) -> str:
    """`path`, made absolute and without symbolic links. Raises UsageError."""
    found = os.path.realpath(path)
    if not path or not os.path.exists(found):
        raise UsageError(f"{option}: there is no directory {path!r}")
    if not os.path.isdir(found):
        raise UsageError(f"{option} {path}: is no directory")
    if not os.access(found, os.R_OK | os.X_OK):
        raise UsageError(f"{option} {path}: Permission denied")
    return found


def modules_of(path: str) -> str:
    """The lib/modules of what `make modules_install INSTALL_MOD_PATH=path` made. Raises UsageError."""
    found = os.path.join(directory("--modules", path), "lib/modules")
    versions = os.listdir(found) if os.path.isdir(found) else []
    if not any(os.path.exists(os.path.join(found, version, "modules.dep")) for version in versions):
        raise UsageError(
            f"--modules {path}: there is no {path}/lib/modules/VERSION/modules.dep in it "
            f"(in the kernel's tree, make modules_install INSTALL_MOD_PATH={os.path.abspath(path)} makes it)"
        )
    return os.path.realpath(found)


def mount_points() -> Iterator[str]:
    """Where this process has something mounted (proc(5), /proc/pid/mountinfo)."""
    with open(MOUNTS, "rb") as file:
        for line in file:
            point = line.split(b" ")[4]
            for letter in (b" ", b"\t", b"\n", b"\\"):
                point = point.replace(b"\\%03o" % ord(letter), letter)
            yield os.fsdecode(point)


def _mount(guest: Guest, source: str, target: str, kind: str, options: str = "", flags: int = 0) -> None:
    try:
        guest.mount(source, target, kind, options, flags)
    except GuestAgentError as error:
        lacking = LACKING.get(kind, "") if error.errno == errno.ENODEV else ""
        if kind == "9p" and error.errno in NO_TRANSPORT:
            lacking = "CONFIG_NET_9P_VIRTIO"
        if not lacking:
            raise
        raise GuestAgentError(f"{error}: its kernel lacks {lacking} (pyvmm kconfig)", errno=error.errno) from error
