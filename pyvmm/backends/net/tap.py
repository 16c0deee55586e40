"""A tap: a network interface of the host whose other end is the guest (Linux, Documentation/networking/tuntap.rst).

Imports its package and errors. Frames carry virtio's header, so that checksums and segmentation pass between guest and
host undone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

from pyvmm.backends.net import MAX_FRAME, fail_as_c_did
from pyvmm.errors import BackendError, UsageError

# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNGETIFF = 0x800454D2
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_TSO_ECN = 0x08
# linux/sockios.h and linux/if.h
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
SIOCSIFMTU = 0x8922
IFF_UP = 0x1
IFNAMSIZ = 16

DEVICE = "/dev/net/tun"
HEADER = 12
"""Bytes of virtio_net_hdr with num_buffers (virtio 1.3, 5.1.6)."""
_REQUEST = struct.Struct("16sh22x")
"""struct ifreq with flags."""
_MTU_REQUEST = struct.Struct("16si20x")
_DROPPED = (errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.ENOBUFS, errno.ENOMEM)
"""What the host answers to a frame that it does not take: a header that it does not like, an interface that is down."""


class Tap:
    """The guest's side of the interface `name`, by way of `fd`, which it owns from now on.

    The other attributes are for C, see `pyvmm.backends.net.Direct`.
    """

    def __init__(self, name: str, fd: int, *, vnet_header: bool = True) -> None:
        self.name = name
        self.vnet_header = vnet_header
        self.stream = False
        self.buffer = bytearray(HEADER + MAX_FRAME)
        self.start = self.end = self.sent = self.failure = 0
        self._fd = fd
        self._view = memoryview(self.buffer)

    @property
    def direct(self) -> Tap:
        """C may read and write frames here."""
        return self

    def fileno(self) -> int:
        """Its descriptor, or -1 once closed."""
        return self._fd

    def offloads(self, checksum: bool, tso4: bool, tso6: bool, ecn: bool) -> None:
        """Have the host leave these to the guest. Raises BackendError."""
        flags = (checksum, TUN_F_CSUM), (tso4, TUN_F_TSO4), (tso6, TUN_F_TSO6), (ecn, TUN_F_TSO_ECN)
        try:
            fcntl.ioctl(self._fd, TUNSETOFFLOAD, sum(flag for wanted, flag in flags if wanted))
        except OSError as error:
            raise self._gone(error) from None

    def receive(self) -> memoryview | None:
        """The next frame from the host, valid until the next call, or None. Raises BackendError if the tap has gone."""
        if self.start < self.end:  # C has left it to us
            frame, self.start = self._view[self.start : self.end], self.end
            return frame
        try:
            fail_as_c_did(self)
            return self._view[: os.readv(self._fd, (self._view,))]
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise self._gone(error) from None

    def send(self, frame: memoryview) -> bool:
        """Give the host a frame; False if its queue is full. Raises BackendError if the tap has gone."""
        try:
            fail_as_c_did(self)
            os.write(self._fd, frame)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno not in _DROPPED:
                raise self._gone(error) from None
        return True

    def close(self) -> None:
        """Let go of the interface; one that was made for this goes away. A second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _gone(self, error: OSError) -> BackendError:
        return BackendError(f"tap {self.name}: {error.strerror}")


def open_tap(name: str | None = None, *, fd: int | None = None, mtu: int | None = None) -> Tap:
    """The host's tap `name`; a new one if there is none, under a name of the kernel's choice if that is None or "".

    With `fd` it is the tap that somebody else has opened (IFF_TAP | IFF_NO_PI) and set up; the Tap owns the descriptor
    then. `mtu`, in bytes, is set on the host's side. Raises UsageError for a name that cannot be, and BackendError.
    """
    if fd is not None:
        return _given(fd)
    name = name or ""
    if len(os.fsencode(name)) >= IFNAMSIZ or name in (".", "..") or any(c in "/:%" or c.isspace() for c in name):
        raise UsageError(f"tap {name!r} (expected the name of an interface, up to {IFNAMSIZ - 1} bytes)")
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        hint = "a container needs --device /dev/net/tun" if error.errno == errno.ENOENT else _UNPRIVILEGED
        raise BackendError(f"tap {name}: {DEVICE}: {error.strerror} ({hint})") from None
    try:
        name = _attach(fd, name)
        _bring_up(name, mtu)
    except BaseException:
        os.close(fd)
        raise
    return Tap(name, fd)


_UNPRIVILEGED = "a user network, `--net user`, needs no privilege"


def _attach(fd: int, name: str) -> str:
    request = _REQUEST.pack(os.fsencode(name), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
    try:
        made = fcntl.ioctl(fd, TUNSETIFF, request)
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", HEADER))
    except OSError as error:
        shown = name or "(new)"
        if error.errno == errno.EPERM:
            own = f"ip tuntap add dev {name or 'tap0'} mode tap user $(id -un)"
            problem = f"needs CAP_NET_ADMIN, or a tap that is yours: sudo {own}; {_UNPRIVILEGED}"
        elif error.errno == errno.EBUSY:
            problem = "in use by another process"
        elif error.errno == errno.EINVAL:
            problem = "is no tap, or one with several queues"
        else:
            problem = f"TUNSETIFF: {error.strerror}"
        raise BackendError(f"tap {shown}: {problem}") from None
    return os.fsdecode(_REQUEST.unpack(made)[0].rstrip(b"\0"))


def _bring_up(name: str, mtu: int | None) -> None:
    """Set the MTU, and have the host use the interface."""
    interface = os.fsencode(name)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            if mtu is not None:
                fcntl.ioctl(control, SIOCSIFMTU, _MTU_REQUEST.pack(interface, mtu))
            (flags,) = _REQUEST.unpack(fcntl.ioctl(control, SIOCGIFFLAGS, _REQUEST.pack(interface, 0)))[1:]
            if not flags & IFF_UP:
                fcntl.ioctl(control, SIOCSIFFLAGS, _REQUEST.pack(interface, flags | IFF_UP))
        except PermissionError:
            needs = f"ip link set {name}{'' if mtu is None else f' mtu {mtu}'} up"
            raise BackendError(f"tap {name}: setting it up needs CAP_NET_ADMIN: sudo {needs}") from None
        except OSError as error:
            raise BackendError(f"tap {name}: cannot set it up: {error.strerror}") from None


def _given(fd: int) -> Tap:
    try:
        interface, flags = _REQUEST.unpack(fcntl.ioctl(fd, TUNGETIFF, _REQUEST.pack(b"", 0)))
    except OSError as error:
        raise BackendError(f"descriptor {fd} is no tap: {error.strerror}") from None
    name = os.fsdecode(interface.rstrip(b"\0"))
    if not flags & IFF_TAP:  # IFF_NO_PI cannot be asked for: the answer has IFF_NOFILTER in its place
        raise BackendError(f"descriptor {fd}, {name}: expected one made with IFF_TAP")
    vnet_header = bool(flags & IFF_VNET_HDR)
    if vnet_header:
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", HEADER))
    os.set_blocking(fd, False)
    os.set_inheritable(fd, False)
    return Tap(name, fd, vnet_header=vnet_header)
