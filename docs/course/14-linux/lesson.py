"""What a boot of Linux is made of, and how an exit is got rid of."""

import mmap
import time
from collections import Counter

from pyvmm import VM
from pyvmm.events import EventFd
from pyvmm.images import guest, image
from pyvmm.kvm import Kvm
from pyvmm.observe import Observer


def linux(**settings):
    tiny = image("tiny")
    return VM(tiny.kernel, initrd=tiny.initrd, mem="64M", append="pyvmm.poweroff", timeout=240, **settings)


# What the loader puts into memory; nothing runs yet.
def layout():
    vm = linux()
    for piece in vm.load().pieces:
        print(f"{piece.gpa:#011x}  {piece.length:9} bytes  {piece.what}")
    vm.close()


# Counts port accesses, those that the run loop in C deals with as well.
class Ports(Observer):
    counts = Counter()

    def on_exit(self, vcpu, exit):
        if exit.name == "IO":
            self.counts[exit.port, "writes" if exit.is_write else "reads"] += 1


# Boots Linux to its end, and says what it has spent its exits on.
def boot():
    with linux(observers=[Ports()]) as vm:
        reason, exits, in_c = vm.wait().reason, sum(vm.stats.exits.values()), sum(vm.vcpus[0].served().values())
        print(f"ended by {reason} after {vm.stats.seconds:.1f} s, {exits} exits, of these {in_c} in C alone")
    for (port, what), count in Ports.counts.most_common(4):
        print(f"{count:8} {what:6} port {port:#x}")


# A thousand rings of a doorbell: plain, with an ioeventfd, and coalesced.
def bell():
    for how in ("plain", "ioeventfd", "coalesced"):
        with mmap.mmap(-1, 1 << 20) as memory, Kvm() as kvm, kvm.create_vm() as vm:
            event, vcpu, exits, kept = EventFd(), ready(vm, memory), 1, 0
            if how == "ioeventfd":
                vm.ioeventfd(event.fileno(), 0x500, 1, pio=True)
            if how == "coalesced":
                vm.register_coalesced(0x500, 1, pio=True)
            start = time.perf_counter()
            while vcpu.run().port != 0xF4:
                exits, kept = exits + 1, kept + len(vcpu.drain_coalesced())
            micros = (time.perf_counter() - start) * 1000
            kept, rung = kept + len(vcpu.drain_coalesced()), event.drain()
            print(f"{how:9} {exits:5} exits, {micros:5.1f} µs a ring; the eventfd says {rung}, kept were {kept}")
            event.close()


# A vCPU of lesson14-doorbell in real mode (lesson 2).
def ready(vm, memory):
    vm.set_tss_addr(0xFFFBD000)
    with open(guest("lesson14-doorbell").path(), "rb") as file:
        memory[0x7C00:0x7E00] = file.read().ljust(0x200, b"\0")
    vm.set_user_memory_region(0, 0, memoryview(memory))
    vcpu = vm.create_vcpu(0)
    sregs, regs = vcpu.get_sregs(), vcpu.get_regs()
    sregs.cs.base, sregs.cs.selector, regs.rip = 0, 0, 0x7C00
    vcpu.set_sregs(sregs)
    vcpu.set_regs(regs)
    return vcpu


# Ten thousand characters to the serial port, by Python and by the run loop in C.
def paths():
    for exits in ("plain", "fast"):
        with VM(guest("exits").path(), append="outb 10000 0x3f8", exits=exits, mem="8M", timeout=60) as vm:
            vm.wait()
            print(f"--exits {exits}: {vm.stats.exits['IO']} exits, {vm.stats.seconds:.2f} s")
