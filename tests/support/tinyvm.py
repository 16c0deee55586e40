"""A VM of one vCPU and a megabyte for tests of pyvmm.kvm itself: hand-assembled guests, always under a time limit."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pyvmm.kvm import Kvm
from pyvmm.kvm.exits import Exit, Interrupted
from pyvmm.kvm.vcpu import VcpuFd
from pyvmm.kvm.vm import VmFd

RAM = 1 << 20
CODE = 0x1000
LIMIT = 5.0
"""Seconds that a guest may run before it is kicked, which the test then sees as an exit that it did not expect."""


class TinyVm:
    """`vm` with slot 0 of `memory` from gpa 0 on and one `vcpu`, in real mode at CODE, all segments 0."""

    def __init__(self, vm: VmFd, vcpu: VcpuFd, memory: mmap.mmap) -> None:
        self.vm = vm
        self.vcpu = vcpu
        self.memory = memory

    def load(self, code: bytes, **registers: int) -> None:
        """Put `code` at CODE and start there, interrupts off, with these registers."""
        self.memory[CODE : CODE + len(code)] = code
        sregs = self.vcpu.get_sregs()
        for name in ("cs", "ds", "es", "ss"):
            segment = getattr(sregs, name)
            segment.base = segment.selector = 0
        self.vcpu.set_sregs(sregs)
        regs = self.vcpu.get_regs()
        for name, value in {"rip": CODE, "rsp": 0x8000, "rflags": 2, **registers}.items():
            setattr(regs, name, value)
        self.vcpu.set_regs(regs)

    def run(self) -> Exit:
        """One `run()`, kicked after LIMIT seconds."""
        timer = threading.Timer(LIMIT, self.vcpu.kick)
        timer.start()
        try:
            return self.vcpu.run()
        finally:
            timer.cancel()
            timer.join()

    def finish(self) -> None:
        """Let KVM complete the instruction whose exit was answered last."""
        self.vcpu.immediate_exit = True
        assert isinstance(self.vcpu.run(), Interrupted)
        self.vcpu.immediate_exit = False


@contextmanager
def tiny_vm(code: bytes = b"\xf4", irqchip: bool = False, flags: int = 0, **registers: int) -> Iterator[TinyVm]:
    """A TinyVm with `code` loaded, with KVM's interrupt controllers if `irqchip`; `flags` of its memory slot."""
    memory = mmap.mmap(-1, RAM, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with Kvm() as kvm, kvm.create_vm() as vm:
        if irqchip:
            vm.set_identity_map_addr(0xFFFBC000)
            vm.set_tss_addr(0xFFFBD000)
            vm.create_irqchip()
        vm.set_user_memory_region(0, 0, memoryview(memory), flags)
        tiny = TinyVm(vm, vm.create_vcpu(0), memory)
        tiny.load(code, **registers)
        yield tiny
    memory.close()
