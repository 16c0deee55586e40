"""What each kind of virtio device is made of: the device model, and what it is connected to on the host.

May import virtio, the back-ends and hardware, each module when there is such a device. Every function opens what the
device needs and returns it; it raises BackendError or UsageError and leaves nothing open.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pyvmm.backends.net import Frames
    from pyvmm.hardware import Balloon, Disk, Net, Rng, Share, Vsock
    from pyvmm.virtio.console import VirtioConsole
    from pyvmm.virtio.device import VirtioDevice
    from pyvmm.virtio.port import Port

    Say = Callable[[str], None]


def block(disk: Disk, name: str, report: Say) -> VirtioDevice:
    """A disk; `report(text)` is told of errors of the host's."""
    from pyvmm.backends.disk import open_disk
    from pyvmm.virtio.block import VirtioBlock

    image = open_disk(disk.path, readonly=disk.readonly, overlay=disk.overlay, cache=disk.cache, format=disk.format)
    return VirtioBlock(image, name=name, serial=disk.serial or name, queues=disk.queues, report=report)


def net(net: Net, name: str, report: Say) -> VirtioDevice:
    """A network interface; `report(text)` is told of what a user should know."""
    from pyvmm.backends.net import random_mac
    from pyvmm.virtio.net import VirtioNet

    backend = _frames(net)
    try:
        if net.pcap is not None:
            from pyvmm.backends.net.pcap import Capture

            backend = Capture(backend, net.pcap, report=report)
        return VirtioNet(backend, name=name, mac=net.mac or random_mac(), mtu=net.mtu, spoof=net.spoof, report=report)
    except BaseException:
        backend.close()
        raise


def _frames(net: Net) -> Frames:
    """What the interface is connected to. Raises BackendError, UsageError."""
    if net.kind == "tap":
        from pyvmm.backends.net.tap import open_tap

        return open_tap(net.target, mtu=net.mtu)
    if net.kind == "socket":
        from pyvmm.backends.net.switch import join_switch

        return join_switch(net.target)
    from pyvmm.backends.net.forward import parse_forward, parse_publish
    from pyvmm.backends.net.passt import Passt

    # Only QEMU's way of writing a forward has a dash.
    forwards = [parse_forward(text) if "-" in text else parse_publish(text) for text in net.forwards]
    return Passt(forwards, mtu=net.mtu)


def console(ports: Iterable[Port], name: str) -> VirtioConsole:
    """A console with `ports`, of which the first is the console itself."""
    from pyvmm.virtio.console import VirtioConsole

    return VirtioConsole(list(ports), name=name)


def rng(rng: Rng, name: str) -> VirtioDevice:
    """A source of random numbers."""
    from pyvmm.virtio.rng import VirtioRng

    return VirtioRng(name=name, rate=rng.rate)


def share(share: Share, name: str, report: Say) -> VirtioDevice:
    """A directory; `report(text)` is told of errors of the host's."""
    from pyvmm.backends.share.opening import open_share
    from pyvmm.virtio.p9 import Virtio9p

    return Virtio9p(open_share(share.path, readonly=share.readonly), share.tag, name=name, report=report)


def vsock(vsock: Vsock, name: str, report: Say) -> VirtioDevice:
    """Sockets between guest and host; `report(text)` is told of what a user should know."""
    from pyvmm.backends.vsock import open_vsock
    from pyvmm.virtio.vsock import VirtioVsock

    return VirtioVsock(open_vsock(vsock.path), cid=vsock.cid, name=name, report=report)


def balloon(balloon: Balloon, name: str) -> VirtioDevice:
    """A memory balloon."""
    from pyvmm.virtio.balloon import VirtioBalloon

    return VirtioBalloon(name=name, size=balloon.size)
