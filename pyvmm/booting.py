"""How a VM begins that boots: empty memory, a kernel loaded into it, the boot processor at the kernel's entry.

Imports boot, layout, memory and slots, and kvm where it is needed. `pyvmm.snapshot.restore` has the same methods for a
VM that goes on where another one was saved; `pyvmm.vm` asks one of the two.
"""

from __future__ import annotations

from pyvmm import layout
from pyvmm.boot import Surroundings, load
from pyvmm.memory import GuestMemory
from pyvmm.slots import choose_transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.attach import VirtioDevices
    from pyvmm.boot import LoadedKernel
    from pyvmm.config import VmConfig
    from pyvmm.kvm.entries import CpuidEntry
    from pyvmm.kvm.host import Host
    from pyvmm.kvm.system import Kvm
    from pyvmm.kvm.vcpu import VcpuFd
    from pyvmm.kvm.vm import VmFd
    from pyvmm.machine import Machine
    from pyvmm.slots import Slot


class Booting:
    """The beginning of a VM of `config`. `sources` are the folders of the snapshots that a VM comes from: none here."""

    sources: tuple[str, ...] = ()

    def __init__(self, config: VmConfig) -> None:
        self._config = config
        self._loaded: LoadedKernel | None = None

    def transport(self) -> str:
        """That of the virtio devices."""
        return choose_transport(self._config)

    def memory(self) -> GuestMemory:
        """The guest's RAM. Raises PyvmmError."""
        return GuestMemory.allocate(layout.ram_ranges(self._config.mem), self._config.memory_backing)

    def load(self, memory: GuestMemory, slots: Sequence[Slot], transport: str, host: Host) -> LoadedKernel:
        """Put the kernel into `memory`, with word of the devices at `slots`. Raises LoadError, UsageError."""
        pci = bool(slots) and transport == "pci"
        mmio = () if pci else slots
        surroundings = Surroundings(
            emulated=bool(host.quirks.ring0_emulated),
            helps=host.linux_options,
            devices=[slot.word for slot in mmio],
            virtio_mmio=[(slot.gpa, layout.VIRTIO_MMIO_SIZE, slot.gsi) for slot in mmio],
            pci=[slot.device for slot in slots if slot.device is not None] if pci else None,
        )
        self._loaded = load(self._config, memory, surroundings)
        return self._loaded

    def create_vcpus(self, kvm: Kvm, vm: VmFd, host: Host) -> tuple[VcpuFd, ...]:
        """The vCPUs, ready for the first instruction; memory is loaded. Raises UsageError, KvmError."""
        from pyvmm.kvm.assembly import create_vcpus

        assert self._loaded is not None
        return create_vcpus(kvm, vm, self._config.cpus, self._config.cpu, host.without, self._loaded.state)

    def cpuid(self, kvm: Kvm, vm: VmFd, host: Host) -> Sequence[Sequence[CpuidEntry]]:
        """What the CPUID instruction answers on each vCPU."""
        from pyvmm.kvm.assembly import guest_cpuid

        return guest_cpuid(kvm, vm, self._config.cpus, self._config.cpu, host.without)

    def fill(self, vm: VmFd, vcpus: tuple[VcpuFd, ...], machine: Machine, virtio: VirtioDevices | None) -> None:
        """What there is to be done when everything has been made: nothing, it all begins anew."""

    def close(self) -> None:
        """Nothing to give back."""
