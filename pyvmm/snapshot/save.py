"""Saving a VM: everything that it is at one moment, in the order that keeps it one moment.

Imports its neighbours, kvm, the machine's models and state. The vCPUs stand still, each with its last instruction
completed, and no data plane serves: `pyvmm.vm` sees to that. Here the locks of all virtio devices are held besides, so
that nothing comes into the guest's memory from outside either, until the memory has been written.
"""

from __future__ import annotations

import os
import time

from pyvmm import layout
from pyvmm.errors import PyvmmError, UsageError
from pyvmm.kvm.archstate import save_vcpu, save_vm
from pyvmm.snapshot.chain import Layers, describe_base
from pyvmm.snapshot.configuration import save_config
from pyvmm.snapshot.disks import save_disk
from pyvmm.snapshot.file import Folder, Writer
from pyvmm.snapshot.memory import save_memory
from pyvmm.snapshot.models import models
from pyvmm.state import StateError, Stateful
from pyvmm.virtio.block import VirtioBlock
from pyvmm.virtio.saving import save_device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from threading import Lock
    from typing import Any

    from pyvmm.attach import VirtioDevices
    from pyvmm.boot import LoadedKernel
    from pyvmm.config import VmConfig
    from pyvmm.kvm.entries import CpuidEntry
    from pyvmm.kvm.system import Kvm
    from pyvmm.kvm.vcpu import VcpuFd
    from pyvmm.kvm.vm import VmFd
    from pyvmm.machine import Machine
    from pyvmm.memory import GuestMemory

COARSE = 0.011
"""Seconds within which two changes of a file may have the same time (a tick of the kernel's clock at 100 Hz)."""


class Subject:
    """What there is to be saved of a VM. `sources` are the folders that it was restored from."""

    __slots__ = (
        *("config", "cpuid", "fd", "kvm", "loaded", "machine", "memory", "sources", "transport", "vcpus", "virtio"),
    )

    def __init__(
        self,
        config: VmConfig,
        loaded: LoadedKernel,
        transport: str,
        kvm: Kvm,
        fd: VmFd,
        vcpus: Sequence[VcpuFd],
        cpuid: Sequence[Sequence[CpuidEntry]],
        machine: Machine,
        memory: GuestMemory,
        virtio: VirtioDevices | None,
        sources: Sequence[str] = (),
    ) -> None:
        self.config = config
        self.loaded = loaded
        self.transport = transport
        self.kvm = kvm
        self.fd = fd
        self.vcpus = vcpus
        self.cpuid = cpuid
        self.machine = machine
        self.memory = memory
        self.virtio = virtio
        self.sources = sources


def save(path: str, vm: Subject, base: str | None = None) -> None:
    """Save `vm`, which stands still, to the folder `path`, in the place of a snapshot that may be there.

    With `base`, a snapshot of the same memory, only the pages that are other than there. Raises UsageError for a VM
    that cannot be saved or a path that is no place for it, LoadError for a base that is none, PyvmmError where the host
    cannot.
    """
    if base is not None:
        with Folder(base) as folder:
            layers = Layers(folder, layout.ram_ranges(vm.config.mem))
            try:
                _refuse(path, layers.paths, "the base is it, or stands on it")
                memory = layers.map()
                try:
                    _save(path, vm, describe_base(folder), memory)
                finally:
                    memory.close()
            finally:
                layers.close()
    else:
        _save(path, vm)


def _refuse(path: str, others: Iterable[str], why: str) -> None:
    if os.path.exists(path) and any(os.path.exists(one) and os.path.samefile(path, one) for one in others):
        raise UsageError(f"snapshot {path}: {why}, so it cannot be saved over it")


def _save(path: str, vm: Subject, base: dict[str, str] | None = None, before: GuestMemory | None = None) -> None:
    _refuse(path, vm.sources, "the VM was restored from it")
    held: list[Lock] = []
    try:
        for lock in _locks(vm.virtio):
            lock.acquire()
            held.append(lock)
        began = time.monotonic()
        try:
            state = _save_state(vm)
            with Writer(path) as writer:
                state["disks"] = _save_disks(writer, vm)
                state["base"] = base
                state["memory"] = save_memory(writer, vm.memory, before)
                writer.commit(state)
        except StateError as error:
            raise UsageError(f"snapshot {path}: {error}") from error
        except OSError as error:
            if isinstance(error, PyvmmError):
                raise
            raise PyvmmError(f"snapshot {path}: cannot be written: {error.strerror or error}") from error
        # What is written to a disk from now on has another time than what was written before.
        time.sleep(max(0.0, began + COARSE - time.monotonic()))
    finally:
        for lock in reversed(held):
            lock.release()


def _locks(virtio: VirtioDevices | None) -> list[Lock]:
    devices = () if virtio is None else virtio.devices
    return [lock for device in devices for lock in (device.lock, device.plane)]


def _save_state(vm: Subject) -> dict[str, Any]:
    from pyvmm import __version__

    loaded = vm.loaded
    msrs = vm.kvm.msr_index_list()
    return {
        "pyvmm": __version__,
        "time": time.time(),
        "config": save_config(vm.config),
        "transport": vm.transport,
        "loaded": {
            "path": loaded.path,
            "format": loaded.format,
            "entry": loaded.entry,
            "command_line": loaded.command_line,
        },
        # Before the chips: what a vCPU has been given by them is not given to it again.
        "vcpus": [save_vcpu(vcpu, msrs, cpuid) for vcpu, cpuid in zip(vm.vcpus, vm.cpuid, strict=True)],
        "vm": save_vm(vm.fd),
        "models": {name: _locked(model) for name, model in models(vm.machine, vm.virtio).items()},
        "virtio": {
            device.name: save_device(device, transport)
            for device, transport in (() if vm.virtio is None else vm.virtio.saved_with())
        },
    }


def _locked(model: Stateful) -> dict[str, Any]:
    with model.lock:  # type: ignore[attr-defined]
        return model.save()


def _save_disks(writer: Writer, vm: Subject) -> list[dict[str, Any]]:
    devices = [device for device in (() if vm.virtio is None else vm.virtio.devices) if isinstance(device, VirtioBlock)]
    return [save_disk(writer, disk, device) for disk, device in zip(vm.config.disks, devices, strict=True)]
