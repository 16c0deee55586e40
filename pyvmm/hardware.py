"""What can be attached to a VM: disks, networks, shares, ports and more. Plain data, checked when made.

Imports errors alone. Nothing is opened for any of these before the VM starts; what each becomes is `attach`.
"""

from __future__ import annotations

import os

from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

CACHE_MODES = ("writeback", "none", "unsafe")
DISK_FORMATS = ("raw",)
NET_KINDS = ("user", "tap", "socket")
DATAPATHS = ("native", "python")
MAX_QUEUES = 16
MIN_MTU, MAX_MTU = 68, 65535
"""An IPv4 link carries 68 bytes at least (RFC 791, 3.2); the field has 16 bits (virtio 1.3, 5.1.4)."""
MAC_LENGTH = 6
MAX_TAG = 31
"""Bytes of a share's name. Any 16-bit length would do for the device; Linux's mount(8) and sysfs like short ones."""
MIN_CID, MAX_CID = 3, 0xFFFFFFFE
"""Context identifiers that a guest may have: 0 to 2 and 0xffffffff are taken (virtio 1.3, 5.10.4)."""


class Disk:
    """A disk, /dev/vda and so on in Linux.

    path       an image file or a block device
    readonly   the guest may not write
    overlay    what the guest writes is kept beside the image while the VM lives, and then forgotten
    format     how the image is laid out: only "raw", and never guessed
    cache      "writeback": a flush of the guest's reaches the disk; "none": the host caches nothing (O_DIRECT);
               "unsafe": flushes are ignored, for images that nobody needs afterwards
    queues     request queues, 1 to 16
    serial     what the disk says when asked for its name, up to 20 bytes of ASCII
    datapath   one of DATAPATHS, or None: as the VM's

    Raises UsageError, which names the field.
    """

    __slots__ = ("cache", "datapath", "format", "overlay", "path", "queues", "readonly", "serial")

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        readonly: bool = False,
        overlay: bool = False,
        format: str = "raw",
        cache: str = "writeback",
        queues: int = 1,
        serial: str = "",
        datapath: str | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.readonly = readonly
        self.overlay = overlay
        self.format = one_of("disk format", format, DISK_FORMATS)
        self.cache = one_of("cache mode", cache, CACHE_MODES)
        self.queues = queues
        self.serial = serial
        self.datapath = None if datapath is None else one_of("data path", datapath, DATAPATHS)
        if not self.path:
            raise UsageError("a disk needs a path")
        if readonly and overlay:
            raise UsageError(f"{self.path}: a disk is either read-only or has an overlay to write to")
        if overlay and cache == "none":
            raise UsageError(f"{self.path}: an overlay is a temporary file, for which cache=none means nothing")
        if not 1 <= queues <= MAX_QUEUES:
            raise UsageError(f"{self.path}: {queues} queues (expected 1 to {MAX_QUEUES})")
        if not serial.isascii() or len(serial) > 20:
            raise UsageError(f"{self.path}: serial {serial!r} (expected up to 20 characters of ASCII)")


class Net:
    """A network interface, eth0 and so on in Linux. Made by `Net.user()`, `Net.tap()` or `Net.switch()`.

    kind       one of NET_KINDS
    target     the tap's name ("" for a new one), or the path of the switch's socket
    mac        6 bytes, or None for one at random
    mtu        the largest packet in bytes, 68 to 65535, or None: the driver's own choice
    forwards   ports of the host that lead into the guest, as "tcp:127.0.0.1:2222-:22" or "8080:80"; with `user` alone
    pcap       path of a file that gets all frames, or None
    spoof      whether the guest may send from other addresses than its own
    datapath   one of DATAPATHS, or None: as the VM's
    """

    __slots__ = ("datapath", "forwards", "kind", "mac", "mtu", "pcap", "spoof", "target")

    def __init__(
        self,
        kind: str,
        target: str = "",
        *,
        mac: bytes | None = None,
        mtu: int | None = None,
        forwards: Sequence[str] = (),
        pcap: str | os.PathLike[str] | None = None,
        spoof: bool = True,
        datapath: str | None = None,
    ) -> None:
        self.kind = one_of("network", kind, NET_KINDS)
        self.target = target
        self.mac = mac
        self.mtu = mtu
        self.forwards = tuple(forwards)
        self.pcap = None if pcap is None else os.fspath(pcap)
        self.spoof = spoof
        self.datapath = None if datapath is None else one_of("data path", datapath, DATAPATHS)
        if mac is not None and (len(mac) != MAC_LENGTH or mac[0] & 1 or not any(mac)):
            raise UsageError(f"MAC address {mac.hex(':')!r} (expected 6 bytes of one station, not of a group)")
        if mtu is not None and not MIN_MTU <= mtu <= MAX_MTU:
            raise UsageError(f"MTU of {mtu} (expected {MIN_MTU} to {MAX_MTU})")
        if self.forwards and kind != "user":
            raise UsageError(f"port forwards go with a user network, not with {kind}")
        if kind == "socket" and not target:
            raise UsageError("a switch needs the path of its socket")

    @classmethod
    def user(cls, forwards: Sequence[str] = (), **settings: object) -> Self:
        """A network of the user's own by way of passt: DHCP, DNS and the host's connections, without privilege."""
        return cls("user", forwards=forwards, **settings)  # type: ignore[arg-type]

    @classmethod
    def tap(cls, name: str = "", **settings: object) -> Self:
        """The host's tap device `name`, or a new one. Needs CAP_NET_ADMIN unless the tap is the user's own."""
        return cls("tap", name, **settings)  # type: ignore[arg-type]

    @classmethod
    def switch(cls, path: str | os.PathLike[str], **settings: object) -> Self:
        """A switch on this host that every VM joins which names the same `path`. Without privilege."""
        return cls("socket", os.fspath(path), **settings)  # type: ignore[arg-type]


class Port:
    """A named port of the virtio console, /dev/virtio-ports/NAME in Linux.

    `where` is what it is connected to: "unix:PATH", "file:PATH" or "pty"; None is a stream in this process, which the
    VM has as `vm.ports[name]`.
    """

    __slots__ = ("name", "where")

    def __init__(self, name: str, where: str | None = None) -> None:
        self.name = name
        self.where = where
        if not name or not name.isprintable() or not name.isascii() or "/" in name or len(name) > 64:
            raise UsageError(f"port name {name!r} (expected up to 64 characters of ASCII, no /)")


class Rng:
    """A source of random numbers, /dev/hwrng in Linux. `rate` limits it in bytes a second; None does not."""

    __slots__ = ("rate",)

    def __init__(self, rate: int | None = None) -> None:
        self.rate = rate
        if rate is not None and rate < 1:
            raise UsageError(f"random numbers at {rate} bytes a second (expected 1 or more)")


class Share:
    """A directory of the host's that the guest mounts by 9p: `mount -t 9p -o trans=virtio,version=9p2000.L TAG /mnt`.

    path       the directory; the guest never gets out of it
    tag        by what name the guest finds it, up to 31 characters of ASCII
    readonly   the guest may not change anything
    """

    __slots__ = ("path", "readonly", "tag")

    def __init__(self, path: str | os.PathLike[str], tag: str, *, readonly: bool = False) -> None:
        self.path = os.fspath(path)
        self.tag = tag
        self.readonly = readonly
        if not self.path:
            raise UsageError("a share needs a directory")
        if not 0 < len(tag) <= MAX_TAG or not tag.isascii() or not tag.isprintable() or " " in tag:
            raise UsageError(f"share tag {tag!r} (expected up to {MAX_TAG} characters of ASCII, no spaces)")


class Vsock:
    """Stream sockets between guest and host without a network.

    path   a unix socket: who connects to it and sends "CONNECT PORT" reaches that port of the guest; what the guest
           connects to, port N of the host (CID 2), is the unix socket "PATH_N"
    cid    the guest's own address, 3 to 4294967294
    """

    __slots__ = ("cid", "path")

    def __init__(self, path: str | os.PathLike[str], *, cid: int = MIN_CID) -> None:
        self.path = os.fspath(path)
        self.cid = cid
        if not self.path:
            raise UsageError("a vsock needs the path of a unix socket")
        if not MIN_CID <= cid <= MAX_CID:
            raise UsageError(f"CID {cid} (expected {MIN_CID} to {MAX_CID})")


class Balloon:
    """A balloon in the guest's memory: what it holds the guest does not use and the host has back.

    `size` is how much it shall hold at first, in bytes; `VM.balloon` changes that later. The guest gets memory back
    when it runs out of it, and reports pages that it has freed, which the host then has back as well.
    """

    __slots__ = ("size",)

    def __init__(self, size: int = 0) -> None:
        self.size = size
        if size < 0:
            raise UsageError(f"a balloon of {size} bytes (expected 0 or more)")


def one_of(what: str, value: str, choices: Sequence[str]) -> str:
    """`value`, which is one of `choices`. Raises UsageError, which names `what` it is."""
    if value not in choices:
        raise UsageError(f"unknown {what} {value!r} (expected {', '.join(choices)})")
    return value
