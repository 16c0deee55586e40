"""Restoring a VM: its snapshot judged whole, then a VM made as ever, but with what was saved in it.

Imports its neighbours, kvm and state. `Restoring` has the methods of `pyvmm.booting.Booting`: `pyvmm.vm` asks it for
memory, a kernel and processors that other VMs begin with anew.
"""

from __future__ import annotations

import os

from pyvmm import layout
from pyvmm.boot import ALONE, LoadedKernel
from pyvmm.errors import KvmError, LoadError, PyvmmError
from pyvmm.kvm.archstate import cpuid_of, judge_vcpu, judge_vm, restore_vcpu, restore_vm, tell_stopped
from pyvmm.snapshot.chain import Layers
from pyvmm.snapshot.configuration import make_config
from pyvmm.snapshot.file import Folder
from pyvmm.snapshot.models import models
from pyvmm.state import U64, Maybe, StateError, Text, judged
from pyvmm.virtio.saving import restore_device
from pyvmm.virtio.spec import ID_BLOCK, ID_NET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pyvmm.attach import VirtioDevices
    from pyvmm.kvm.entries import CpuidEntry
    from pyvmm.kvm.host import Host
    from pyvmm.kvm.system import Kvm
    from pyvmm.kvm.vcpu import VcpuFd
    from pyvmm.kvm.vm import VmFd
    from pyvmm.machine import Machine
    from pyvmm.memory import GuestMemory
    from pyvmm.slots import Slot
    from pyvmm.state import Kind

_LOADED: dict[str, Kind] = {"path": Text(), "format": Text(), "entry": U64, "command_line": Maybe(Text(1 << 20))}
_PARTS = {
    *("base", "config", "disks", "loaded", "memory", "models", "pyvmm", "time", "transport", "vcpus", "virtio", "vm"),
}


class SavedKernel(LoadedKernel):
    """What is still known of the kernel that was loaded: neither where its pieces were nor how it was started."""

    __slots__ = ()

    def __init__(self, path: str, format: str, entry: int, command_line: str | None) -> None:
        self.path = path
        self.format = format
        self.entry = entry
        self.command_line = command_line
        self.pieces = self.memory_map = self.notes = ()

    def describe(self) -> str:
        """One line."""
        return f"restored      {self.path}"


class Restoring:
    """The snapshot in the folder `path`, ready to become a VM. `others` are settings that shall be other than saved.

    config   the VM's
    source   the folder
    sources  it and those that it is based on

    Judges everything that can be without making a VM: raises LoadError, and UsageError for `others`. `close()` it.
    """

    def __init__(self, path: str | os.PathLike[str], **others: Any) -> None:
        self.source = os.fspath(path)
        self._layers: Layers | None = None
        self._memory: GuestMemory | None = None
        self._folder = Folder(self.source)
        try:
            self._judge(others)
        except StateError as error:
            self.close()
            raise LoadError(self.source, str(error)) from error
        except BaseException:
            self.close()
            raise

    def _judge(self, others: dict[str, Any]) -> None:
        state = self._folder.state
        if state.keys() != _PARTS:
            strange = sorted(state.keys() ^ _PARTS)
            raise LoadError(self.source, f"its state has not the parts of one: {', '.join(strange)[:80]}")
        self.config = config = make_config(state["config"], self.source, **others)
        if state["transport"] not in ("mmio", "pci", ""):
            raise LoadError(self.source, "its state names no transport")
        self._transport: str = state["transport"]
        loaded = judged("loaded", state["loaded"], _LOADED)
        self._loaded = SavedKernel(**loaded)
        if type(state["vcpus"]) is not list or len(state["vcpus"]) != config.cpus:
            raise LoadError(self.source, f"its state is not that of {config.cpus} vCPUs")
        self._vcpus = [judge_vcpu(vcpu, f"vCPU {index}") for index, vcpu in enumerate(state["vcpus"])]
        self._vm = judge_vm(state["vm"])
        for part in ("models", "virtio"):
            if type(state[part]) is not dict:
                raise LoadError(self.source, f"its state has no {part}")
        if config.disks or state["disks"]:
            from pyvmm.snapshot.disks import judge_disks

            judge_disks(self.source, config.disks, state["disks"])
        self._layers = Layers(self._folder, layout.ram_ranges(config.mem))
        self.sources = tuple(self._layers.paths)

    def transport(self) -> str:
        """That of the virtio devices."""
        return self._transport

    def memory(self) -> GuestMemory:
        """The VM's RAM: pages of the snapshot's until they are written to. Raises PyvmmError."""
        assert self._layers is not None
        try:
            self._memory = self._layers.map()
            return self._memory
        except (OSError, ValueError) as error:
            raise PyvmmError(f"{self.source}: its memory cannot be mapped: {error}") from error

    def load(self, memory: GuestMemory, slots: Sequence[Slot], transport: str, host: Host) -> LoadedKernel:
        """What is known of the kernel: `memory` has it."""
        return self._loaded

    def cpuid(self, kvm: Kvm, vm: VmFd, host: Host) -> list[list[CpuidEntry]]:
        """What the CPUID instruction answers on each vCPU."""
        return [cpuid_of(state) for state in self._vcpus]

    def create_vcpus(self, kvm: Kvm, vm: VmFd, host: Host) -> tuple[VcpuFd, ...]:
        """The VM's vCPUs, as they will be when `fill()` has been called. Raises LoadError for another host's."""
        self._judge_features(kvm)
        return tuple(vm.create_vcpu(index) for index in range(self.config.cpus))

    def _judge_features(self, kvm: Kvm) -> None:
        """See that the host has every CPU feature that the guest was shown."""
        from pyvmm.kvm.cpufeatures import missing_features

        missing = missing_features(cpuid_of(self._vcpus[0]), kvm.supported_cpuid())
        if missing:
            problem = f"its guest was shown CPU features that this host does not have: {', '.join(missing[:8])}"
            raise LoadError(self.source, problem)

    def fill(self, fd: VmFd, vcpus: tuple[VcpuFd, ...], machine: Machine, virtio: VirtioDevices | None) -> None:
        """Put everything into the VM, which has been made and has not run. Raises LoadError.

        Processors first, then chips, which may have something for them, then devices, which set their lines again.
        """
        try:
            for vcpu, state in zip(vcpus, self._vcpus, strict=True):
                restore_vcpu(vcpu, state)
            restore_vm(fd, self._vm)
            self._restore_models(machine, virtio)
            self._restore_virtio(virtio)
            tell_stopped(vcpus)
            self._tell_generation(machine)
        except StateError as error:
            raise LoadError(self.source, str(error)) from error
        except KvmError as error:
            raise LoadError(self.source, f"this host's KVM refuses its state: {error}") from error

    def _tell_generation(self, machine: Machine) -> None:
        """Let the guest know that it is another VM now: its random numbers, for one, must not be those of others."""
        if self._loaded.format not in ALONE and self._memory is not None:
            self._memory.write(layout.VM_GENERATION, os.urandom(layout.VM_GENERATION_SIZE))
            machine.pm.raise_event(layout.GENERATION_GPE)

    def _restore_models(self, machine: Machine, virtio: VirtioDevices | None) -> None:
        saved: dict[str, Any] = self._folder.state["models"]
        here = models(machine, virtio)
        if here.keys() != saved.keys():
            raise StateError(f"it has other devices than this pyvmm: {', '.join(sorted(here.keys() ^ saved.keys()))}")
        for name, model in here.items():
            model.restore(saved[name])

    def _restore_virtio(self, virtio: VirtioDevices | None) -> None:
        saved: dict[str, Any] = self._folder.state["virtio"]
        disks, nets = iter(self._folder.state["disks"]), iter(self.config.nets)
        here = [] if virtio is None else virtio.saved_with()
        if [device.name for device, _ in here] != list(saved):
            raise StateError("it has other virtio devices than its configuration")
        for device, transport in here:
            if device.device_id == ID_BLOCK:
                from pyvmm.snapshot.disks import restore_disk
                from pyvmm.virtio.block import VirtioBlock

                assert isinstance(device, VirtioBlock)
                restore_disk(self._folder, device, next(disks))
            restore_device(device, transport, saved[device.name])
            if device.device_id == ID_NET:
                from pyvmm.virtio.net import VirtioNet

                assert isinstance(device, VirtioNet)
                mac = next(nets).mac
                if mac is not None and mac != device.mac:
                    device.readdress(mac)

    def close(self) -> None:
        """Let go of the folder's files; memory that was mapped stays. A second call does nothing."""
        if self._layers is not None:
            self._layers.close()
        self._folder.close()
