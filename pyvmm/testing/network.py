"""Several guests on one network, for a test: clones of one snapshot, each with an address of its own, on a switch.

Imports errors and hardware. Linux guests whose image has `ip`, as ours has.
"""

from __future__ import annotations

import os
import shutil
import tempfile

from pyvmm.errors import UsageError
from pyvmm.hardware import Net

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.testing.fixtures import VmFactory
    from pyvmm.vm import VM

NETWORK = "10.9.0"
MAC = "52:54:00:09:00"
MOST = 250
LONGEST_BASE = 80
"""Bytes, of the 107 that a socket's path may have (unix(7))."""
LIMIT = 60.0
"""Seconds for a guest to set its address: four programs."""


class VmNet:
    """A network for the guests of one test.

    path   of the switch's socket, for a guest that the test makes itself: `net=Net.switch(vm_net.path)`

    `vm_net(2)` gives two guests, whose addresses `vm_net.address(vm)` says: 10.9.0.1 and so on, in a network of 24
    bits. Each is `eth0` there, and reaches the others alone.
    """

    def __init__(self, factory: VmFactory, base: str) -> None:
        """`base` is the folder for temporary files, unless its path is too long to be part of a socket's."""
        self._factory = factory
        where = base if len(os.fsencode(base)) <= LONGEST_BASE else None
        self._folder = tempfile.mkdtemp(prefix="pyvmm-net-", dir=where)
        self._addresses: list[tuple[VM, str]] = []
        self.path = os.path.join(self._folder, "switch")

    def __call__(self, count: int = 1, **settings: Any) -> list[VM]:
        """`count` more guests: clones, made as the mark and `settings` say. Raises PyvmmError."""
        return [self._join(settings) for _ in range(count)]

    def address(self, vm: VM) -> str:
        """The IPv4 address of a guest. Raises UsageError for one that is not on this network."""
        for known, address in self._addresses:
            if known is vm:
                return address
        raise UsageError("this VM is none of the network's")

    def _join(self, settings: dict[str, Any]) -> VM:
        number = len(self._addresses) + 1
        if number > MOST:
            raise UsageError(f"no more than {MOST} guests on one network")
        net = Net.switch(self.path)
        vm = self._factory.clone({"net": net}, **{**settings, "net": net})
        address = f"{NETWORK}.{number}"
        script = (
            f"ip link set dev eth0 address {MAC}:{number:02x} && ip addr add {address}/24 dev eth0 && "
            "ip link set dev eth0 up && ip link set dev lo up"
        )
        vm.exec(["sh", "-c", script], timeout=LIMIT).check()
        self._addresses.append((vm, address))
        return vm

    def close(self) -> None:
        """Remove the switch's folder. A second call does nothing."""
        shutil.rmtree(self._folder, ignore_errors=True)
