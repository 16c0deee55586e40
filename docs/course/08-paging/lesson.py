"""Lesson 8: page tables built by hand, watched in a guest, and what KVM counts behind them."""

from pyvmm import VM
from pyvmm.cpubits import CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME
from pyvmm.images import guest
from pyvmm.memory import GuestMemory
from pyvmm.paging import Paging

PRESENT, WRITABLE, LARGE = 1 << 0, 1 << 1, 1 << 7
UNMAPPED = 0x00C0_FFE0


def show(paging, memory, gva):
    walk = paging.walk(memory, gva)
    print(f"{gva:#x} leads to {walk.problem or hex(walk.gpa)}")
    for entry in walk.entries:
        print(f"  {entry.describe()}")


def build():
    """Four tables for one page, at 0x1000 to 0x4000; the page is at 0x7000. Then, beside them, one large page."""
    memory = GuestMemory.allocate([(0, 1 << 20)])
    memory.write_u64(0x1000 + 8 * 0, 0x2000 | PRESENT | WRITABLE)  # PML4E
    memory.write_u64(0x2000 + 8 * 0, 0x3000 | PRESENT | WRITABLE)  # PDPTE
    memory.write_u64(0x3000 + 8 * 6, 0x4000 | PRESENT | WRITABLE)  # PDE
    memory.write_u64(0x4000 + 8 * 15, 0x7000 | PRESENT)  # PTE
    memory.write_u64(0x3000 + 8 * 7, 0x20_0000 | PRESENT | WRITABLE | LARGE)  # PDE
    paging = Paging(CR0_PE | CR0_PG, 0x1000, CR4_PAE, EFER_LME | EFER_LMA)
    for gva in (UNMAPPED, UNMAPPED + 0x1000, 0xE1_2345):
        show(paging, memory, gva)
    memory.close()


def watch():
    """Walk the guest's own tables at the end of each line that it prints."""
    vm = VM(guest("paging").path(), timeout=30)

    def look(vcpu, exit):
        if exit.data == b"\n" and exit.is_write:
            print(vm.console.text.splitlines()[-1])
            sregs = vcpu.get_sregs()
            show(Paging(sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer), vm.memory, UNMAPPED)

    vm.on_exit("IO", look)
    with vm:
        vm.wait()


def count():
    """What KVM has counted for the same guest."""
    with VM(guest("paging").path(), timeout=30) as vm:
        vm.wait()
        counters = vm.vcpus[0].stats_fd().read() | vm.vcpus[0].vm.stats_fd().read()
    for name in ("exits", "insn_emulation", "pf_guest", "invlpg", "tlb_flush", "mmu_pte_write"):
        print(f"{name:>14} {counters.get(name, 0):6}")
