"""A guest that counts for ever: saved, gone on with elsewhere, and its memory watched."""

import json
import mmap
import tempfile
import time
from pathlib import Path
from threading import Timer

from pyvmm import VM
from pyvmm.images import guest
from pyvmm.kvm import Kvm
from pyvmm.kvm.constants import KVM_MEM_LOG_DIRTY_PAGES


def counter(vm):
    return vm.memory.read_u32(0x600)


def save(path):
    """Saves a VM when it has counted to 10,000 or more; returns where it stood."""
    with VM(guest("lesson15-counter").path(), mem="1M", timeout=60) as vm:
        while counter(vm) < 10_000:
            time.sleep(0.001)
        vm.pause()
        vm.snapshot(path)
        return counter(vm)


def go_on():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "counter.snap")
        print(f"saved at {save(path)}")
        for name in ("first", "second"):
            with VM.restore(path, paused=True) as clone:
                begins = counter(clone)
                clone.resume()
                while counter(clone) == begins:
                    time.sleep(0.001)
                print(f"the {name} clone begins at {begins} and goes on")


def inside():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "counter.snap")
        save(path)
        for entry in sorted(path.iterdir()):
            name, status = entry.name.split("-")[0], entry.stat()
            print(f"{name:10} {status.st_size:8} bytes, {status.st_blocks * 512} on the disk")
        state = json.loads(path.joinpath("state.json").read_text().split("\n", 1)[1])
    for name, part in {"vCPU": state["vcpus"][0], "VM": state["vm"], "devices": state["models"]}.items():
        print(f"{name}:", ", ".join(part))


def dirty():
    with mmap.mmap(-1, 1 << 20) as memory, Kvm() as kvm, kvm.create_vm() as vm:
        vm.set_tss_addr(0xFFFBD000)
        memory[0x7C00:0x7E00] = Path(guest("lesson15-counter").path()).read_bytes().ljust(0x200, b"\0")
        vm.set_user_memory_region(0, 0, memoryview(memory), KVM_MEM_LOG_DIRTY_PAGES)
        vcpu = vm.create_vcpu(0)
        sregs, regs = vcpu.get_sregs(), vcpu.get_regs()
        sregs.cs.base, sregs.cs.selector, regs.rip = 0, 0, 0x7C00
        vcpu.set_sregs(sregs)
        vcpu.set_regs(regs)
        Timer(0.5, vcpu.kick).start()
        vcpu.run()
        for when in ("after half a second of running", "without running since"):
            bitmap = int.from_bytes(vm.dirty_log(0), "little")
            pages = [page for page in range(256) if bitmap >> page & 1]
            print(f"{when}: {len(pages)} of 256 pages, the first {pages[:3]}, the last {pages[-3:]}")
