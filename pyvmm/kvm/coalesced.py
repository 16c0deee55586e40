"""The ring in which KVM collects writes that need no exit, in the pages of a VM's vCPUs (KVM API document, 4.116).

Imports the compiled module (through native.py) and constants; vcpu.py alone imports this, when it is asked for.
"""

from __future__ import annotations

from pyvmm.kvm.constants import KVM_COALESCED_MMIO_PAGE_OFFSET
from pyvmm.kvm.native import ffi, sizeof

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from mmap import mmap

_PAGE = 4096


def drain(pages: mmap) -> Sequence[tuple[int, bytes, bool]]:
    """Take the writes that are there, oldest first: (address, data, is a port). `pages` are a vCPU's shared ones."""
    start = KVM_COALESCED_MMIO_PAGE_OFFSET * _PAGE
    if len(pages) < start + _PAGE:
        return ()
    found = []
    head, size = sizeof("struct kvm_coalesced_mmio_ring"), sizeof("struct kvm_coalesced_mmio")
    with memoryview(pages)[start : start + _PAGE] as page, ffi.from_buffer(page) as raw:
        ring = ffi.cast("struct kvm_coalesced_mmio_ring *", raw)
        entries = (_PAGE - head) // size
        first, last = ring.first, ring.last
        while first != last and first < entries:
            entry = ring.coalesced_mmio[first]
            data = bytes(entry.data[0 : min(entry.len, len(entry.data))])
            found.append((int(entry.phys_addr), data, bool(entry.pio)))
            first = (first + 1) % entries
        # On x86 no store is seen before an earlier load is done (Intel SDM 3A, 9.2.2): what is given back was read.
        ring.first = first
    return found
