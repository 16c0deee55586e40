"""A machine whose one vCPU's exits a test writes into its page, as KVM would: the run loop in C without /dev/kvm."""

from __future__ import annotations

import mmap
import os
from types import SimpleNamespace
from typing import Any

import pytest

from pyvmm import layout
from pyvmm._native import _kvm
from pyvmm.bus import Bus
from pyvmm.kvm import vcpu
from pyvmm.kvm.exits import KVM_EXIT_IO, KVM_EXIT_MMIO, Exit, Mmio, Pio
from pyvmm.kvm.hot import NativeHot
from pyvmm.machine import Machine
from pyvmm.runloop import VcpuLoop
from pyvmm.steering import Control
from pyvmm.testing.scripted import ScriptedVcpu
from pyvmm.virtio.mmio import INTERRUPT_WINDOW, LENGTH, VirtioMmio
from pyvmm.virtio.rng import VirtioRng

lib = _kvm.lib
DATA = 4096
VIRTIO = 0xD000_0000


def _shown(exit: Any) -> str:
    """An access in words; of a long string's data the log of the run loop in C has the beginning alone."""
    text: str = exit.describe()
    return text.partition(" <- ")[0] if isinstance(exit, Pio) and exit.size * exit.count > 8 else text


class Rig:
    """`machine` with a virtio transport, `output` and `interrupts` recorded; `loop` dispatches. Time stands still."""

    def __init__(self, hot: NativeHot | None) -> None:
        self.output = bytearray()
        self.interrupts: list[tuple[int, bool]] = []
        self.control = Control()
        ram = [(0, 16 << 20)]
        deliver = self.interrupts.append
        self.machine = Machine(ram, lambda *level: deliver(level), self.output.extend, self.control.end, hot)
        assert all(self.machine.ports.ranges()), "which makes the devices that wait for their first access"
        self.machine.rtc._clock = lambda: 1_000_000.25
        self.machine.rtc._seen = 1_000_000.25
        self.transport = VirtioMmio(VirtioRng(), lambda: None, self.machine.hot.window(*INTERRUPT_WINDOW))
        self.machine.mmio.attach(VIRTIO, LENGTH, self.transport)
        self.vcpu: Any = None
        self.loop: VcpuLoop = None  # type: ignore[assignment]

    def start(self, vcpu: Any) -> None:
        self.vcpu = vcpu
        self.loop = VcpuLoop(vcpu, self.machine.ports, self.machine.mmio, self.control, drain=self.machine.hot.drain)

    def buses(self) -> tuple[Bus, Bus]:
        return self.machine.ports, self.machine.mmio

    def state(self) -> dict[str, Any]:
        """All that the two paths must agree on when nothing is posted."""
        models = (self.machine.serial, self.machine.rtc, self.transport)
        return {
            **{str(model.name): model.save() for model in models},
            "output": bytes(self.output),
            "interrupts": list(self.interrupts),
            "unclaimed": [(bus.unclaimed_reads, bus.unclaimed_writes) for bus in self.buses()],
            "counts": {kind.name: count for kind, count in self.loop.counts.items()},
            "history": [_shown(exit) for exit in self.loop.history],
        }


class PlainRig(Rig):
    """Python sees every exit."""

    def __init__(self) -> None:
        super().__init__(None)
        self.start(ScriptedVcpu())

    def access(self, is_port: bool, is_write: bool, address: int, size: int, data: bytes) -> bytes:
        count = len(data) // size
        given = data if is_write else b""
        exit: Exit = Pio(address, size, count, is_write, given) if is_port else Mmio(address, size, is_write, given)
        self.loop.dispatch(exit)
        return exit.data  # type: ignore[attr-defined,no-any-return]


class HotRig(Rig):
    """C sees every exit first. `flushing` says whether there is a thread that flushes, which the test then is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, flushing: bool = True) -> None:
        self.failures: list[BaseException] = []
        self.hot = NativeHot(self.failures.append)
        self.served = 0
        self.kind = 0
        if flushing:
            self.hot.memory.flushed = self.hot.memory.armed = 1
        super().__init__(self.hot)
        fake = SimpleNamespace(**{name: getattr(lib, name) for name in dir(lib)})
        fake.pyvmm_vcpu_run = lambda context: self.kind
        monkeypatch.setattr(vcpu, "lib", fake)
        fd = os.memfd_create("vcpu")
        os.ftruncate(fd, 3 * 4096)
        self.page = mmap.mmap(fd, 3 * 4096)
        self.fields = _kvm.ffi.from_buffer("struct kvm_run[]", self.page)
        vm = SimpleNamespace(check_extension=lambda capability: 0)
        made = vcpu.VcpuFd(fd, 0, 3 * 4096, vm)  # type: ignore[arg-type]
        made.serve(self.hot)
        self.start(made)

    def access(self, is_port: bool, is_write: bool, address: int, size: int, data: bytes) -> bytes:
        run = self.fields[0]
        if is_port:
            run.exit_reason, at = KVM_EXIT_IO, DATA
            count = len(data) // size
            run.io.direction, run.io.size, run.io.port, run.io.count, run.io.data_offset = (
                *(int(is_write), size, address, count),
                DATA,
            )
        else:
            run.exit_reason, at = KVM_EXIT_MMIO, _kvm.ffi.offsetof("struct kvm_run", "mmio", "data")
            run.mmio.phys_addr, run.mmio.len, run.mmio.is_write = address, size, int(is_write)
        self.page[at : at + len(data)] = data if is_write else b"\xa5" * len(data)
        self.kind = lib.pyvmm_serve(self.vcpu._context)
        if self.kind == lib.PYVMM_SERVED:
            self.served += 1
        else:
            self.loop.dispatch(self.vcpu.run())
        return self.page[at : at + len(data)]

    def close(self) -> None:
        self.vcpu.close()
        self.hot.close()
        _kvm.ffi.release(self.fields)
        self.page.close()


COM1, CMOS, POST_CODE = layout.SERIAL_PORT, layout.CMOS_PORT, layout.POST_CODE_PORT
