"""Lesson 6: a device in memory, and what it costs to reach one."""

import mmap
import time

from pyvmm import VM, MmioDevice
from pyvmm.events import EventFd
from pyvmm.images import guest
from pyvmm.kvm import Kvm


def slots():
    vm = VM(guest("mmio-hello").path(), mem="4G")
    vm.load()
    for region in vm.memory.regions:
        print(f"slot {region.slot}: {region.gpa:#x} to {region.gpa + region.length - 1:#x}")
    vm.close()


class Console(MmioDevice):
    text = b""

    def read(self, offset, size):
        return 0x01 if offset == 1 else 0

    def write(self, offset, size, value):
        self.text += bytes([value])


def hello():
    console, exits = Console(), []
    vm = VM(guest("mmio-hello").path(), timeout=30)
    vm.attach(console, gpa=0xD000_0000)
    vm.on_exit("MMIO", lambda vcpu, exit: exits.append(exit.describe()))
    with vm:
        vm.wait()
    print(*exits[:5], f"... {len(exits)} exits for {console.text!r}", sep="\n")


ROUNDS, TRIES = 5_000, 5


def measure(code, ioeventfd=None):
    """Seconds for ROUNDS rounds of a loop with the instruction `code`, and how many exits they made."""
    program = b"\xb9" + ROUNDS.to_bytes(2, "little") + code + bytes((0xE2, 254 - len(code), 0xF4))  # ... loop, hlt
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.set_tss_addr(0xFFFB_D000)  # for Intel hosts without "unrestricted guest"
        page = mmap.mmap(-1, 4096)
        page[: len(program)] = program
        vm.set_user_memory_region(0, 0, memoryview(page))
        if ioeventfd is not None:
            vm.ioeventfd(ioeventfd.fd, 0x2000, 1)
        vcpu = vm.create_vcpu(0)
        sregs, regs = vcpu.get_sregs(), vcpu.get_regs()
        sregs.cs.base = sregs.cs.selector = 0
        regs.rip, regs.rbx, regs.rdx = 0, 0x2000, 0x500  # BX: behind the only page
        vcpu.set_sregs(sregs)
        vcpu.set_regs(regs)
        exits, began = 0, time.perf_counter()
        while (exit := vcpu.run()).name in ("IO", "MMIO", "INTR"):  # until HLT
            exits += exit.name != "INTR"
            if exit.name != "INTR" and not exit.is_write:
                vcpu.answer(exit, b"\0")
        return time.perf_counter() - began, exits


CODES = {"nop": "90", "out": "ee", "in": "ec", "MMIO write": "8807", "MMIO read": "8a07", "ioeventfd": "8807"}


def cost():
    event = EventFd()
    for name, code in CODES.items():
        fd = event if name == "ioeventfd" else None
        seconds, exits = min(measure(bytes.fromhex(code), fd) for _ in range(TRIES))
        print(f"{name:>10}: {exits:4} exits, {seconds / ROUNDS * 1e6:.2f} µs a round")
    print(f"the eventfd was signalled {event.drain()} times")
    event.close()
