"""A virtqueue from outside: what its driver writes to registers, and what then lies in memory."""

from struct import iter_unpack, unpack

from pyvmm import VM, Rng
from pyvmm.images import guest
from pyvmm.virtio.mmio import REGISTERS

BASE, SIZE = 0xD0000000, 0x200
PLACES = ("QueueSize", "QueueDescLow", "QueueDriverLow", "QueueDeviceLow")


def run_guest():
    """Runs the guest to its end; (what it said, its writes to registers as (name, value), its memory's reader)."""
    writes = []

    def note(vcpu, exit):
        if exit.is_write and BASE <= exit.gpa < BASE + SIZE:
            register = REGISTERS.at(exit.gpa - BASE, True)
            writes.append((register.name, exit.value))

    vm = VM(guest("lesson12-ring").path(), rng=Rng(), transport="mmio", mem="8M", timeout=30,
            append=f"virtio_mmio.device=4K@{BASE:#x}:5")  # fmt: skip
    vm.on_exit("MMIO", note)
    with vm:
        vm.wait()
        return vm.console.text, writes, vm.memory.read(0, 8 << 20)


def registers():
    """What the driver writes, in order, up to DRIVER_OK."""
    text, writes, _ = run_guest()
    for name, value in writes:
        print(f"{name:18} <- {value:#x}")
    print(text, end="")


def ring():
    """Descriptor table, available ring and used ring as the guest has left them."""
    _, writes, memory = run_guest()
    size, table, available, used = (dict(writes)[name] for name in PLACES)
    print("descriptor table")
    for gpa, length, flags, following in iter_unpack("<QIHH", memory[table : table + 4 * 16]):
        print(f"  buffer at {gpa:#x}, {length} bytes, flags {flags}, next {following}: 0x{memory[gpa : gpa + 8].hex()}")
    flags, index, *heads = unpack("<6H", memory[available : available + 12])
    print(f"available ring: flags {flags}, index {index}, heads {heads}, of {size} entries")
    flags, index = unpack("<2H", memory[used : used + 4])
    elements = list(iter_unpack("<II", memory[used + 4 : used + 4 + 4 * 8]))
    print(f"used ring: flags {flags}, index {index}, elements (head, bytes written) {elements}")
