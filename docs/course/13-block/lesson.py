"""A disk of a megabyte: pyvmm's own device, and one of thirty lines."""

import os
import tempfile
from struct import unpack

from pyvmm import VM, Disk, VirtioDevice
from pyvmm.images import guest

APPEND = "virtio_mmio.device=4K@0xd0000000:5"
TEXT = b"hello from a sector"


def run_guest(sector, **settings):
    path, append = guest("lesson13-sector").path(), f"{sector} {APPEND}"
    with VM(path, append=append, transport="mmio", mem="8M", timeout=30, **settings) as vm:
        vm.wait()
        print(vm.console.text, end="")


def read():
    """Sector 0, and one behind the end, of a disk image."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "disk.img")
        with open(path, "wb") as file:
            file.write(TEXT.ljust(1 << 20, b"\0"))
        for sector in (0, 2048):
            print(f"sector {sector}:")
            run_guest(sector, disks=[Disk(path, readonly=True)])


class ReadOnlyDisk(VirtioDevice):
    """A block device that can do nothing but read, from 512 sectors in memory."""

    device_id, queue_sizes = 2, (16,)
    image = TEXT.ljust(512 * 512, b"\0")

    def config(self):
        return (len(self.image) // 512).to_bytes(8, "little")

    def serve(self, queue):
        for chain in queue.chains():
            kind, _, sector = unpack("<IIQ", chain.read(0, 16))
            room, data = chain.writable_length - 1, b""
            status = 2 if kind else 1
            if kind == 0 and room % 512 == 0 and sector * 512 + room <= len(self.image):
                data, status = self.image[sector * 512 : sector * 512 + room], 0
                chain.write(data)
            chain.write(bytes([status]), room)
            print(f"device: type {kind}, sector {sector}, room for {room} bytes: status {status}")
            queue.push(chain, 0 if status else room + 1)


def own():
    """The same guest, on a device of our own."""
    run_guest(0, virtio=[ReadOnlyDisk("own")])
