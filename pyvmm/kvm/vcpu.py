"""`VcpuFd`: one virtual processor: running it, answering it, getting it to stop. Its registers are in vcpustate.py.

Imports the rest of pyvmm.kvm but system.py and vm.py. `run()` is the only place that reads the union of kvm_run (what
is seldom through decode.py), `answer()` and `refuse()` the only ones that write it. Follows the KVM API document
(Documentation/virt/kvm/api.rst), 4.10 and section 5.

Stopping a vCPU from another thread: `kick()` sets immediate_exit, then sends the kick signal to the thread that ran
the vCPU last. If that thread is in KVM_RUN, the signal ends it; if it is about to be, immediate_exit ends that call at
once. The flag stays set, and every later `run()` gives Interrupted (or the rest of an instruction that was under way),
until somebody sets `immediate_exit` to False.
"""

from __future__ import annotations

import mmap
import time
from errno import EAGAIN, EFAULT, EINTR
from struct import Struct

from pyvmm.errors import KvmError
from pyvmm.forks import keep_from_children
from pyvmm.kvm.causes import cause
from pyvmm.kvm.constants import KVM_COALESCED_MMIO_PAGE_OFFSET, KVM_MP_STATE_UNINITIALIZED
from pyvmm.kvm.decode import ANSWERS, decode
from pyvmm.kvm.descriptor import check
from pyvmm.kvm.exits import (
    KVM_EXIT_IO,
    KVM_EXIT_IO_OUT,
    KVM_EXIT_MEMORY_FAULT,
    KVM_EXIT_MMIO,
    Exit,
    Interrupted,
    Mmio,
    Pio,
    Rdmsr,
    Wrmsr,
)
from pyvmm.kvm.native import ffi, lib, offsetof, sizeof
from pyvmm.kvm.stats import StatsFd
from pyvmm.kvm.vcpustate import VcpuState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm._native import _kvm
    from pyvmm.kvm.vm import VmFd

_REASON = offsetof("struct kvm_run", "exit_reason")
_IMMEDIATE_EXIT = offsetof("struct kvm_run", "immediate_exit")
_MMIO = offsetof("struct kvm_run", "mmio")
_MMIO_DATA = offsetof("struct kvm_run", "mmio", "data")
_MSR_ERROR = offsetof("struct kvm_run", "msr", "error")
_HEAD = Struct(f"<I{offsetof('struct kvm_run', 'io') - _REASON - 4 if _MMIO else 0}xBBHIQ")
"""exit_reason, and the union read as kvm_run.io: direction, size, port, count, data_offset."""
_MMIO_PART = Struct("<Q8sIB")
"""kvm_run.mmio: phys_addr, data, len, is_write."""
_PAGE = 4096
_KEEP_ANSWER = (Pio, Mmio, Rdmsr)

WAITING = 0.001
"""Seconds that a vCPU which KVM wakes for nothing is left alone."""
MOST_AGAIN = 100
"""How often KVM may say EAGAIN to a vCPU that runs: beyond that the host lacks what every KVM_RUN asks for."""

_kick_signal = 0


def kick_signal() -> int:
    """The number of the real-time signal that kicks vCPUs; installs its empty handler the first time.

    Raises KvmError where every real-time signal is in use by somebody else.
    """
    global _kick_signal
    if not _kick_signal:
        _kick_signal = check(lib.pyvmm_kick_install(), "sigaction")
    return _kick_signal


class VcpuFd(VcpuState):
    """A virtual processor. One thread at a time runs it; `kick`, `immediate_exit` and reading are for any thread."""

    __slots__ = ("_again", "_answer_at", "_map", "_runner", "_signal", "index")

    def __init__(self, fd: int, index: int, mmap_size: int, vm: VmFd) -> None:
        """Takes over `fd`, and closes it if the map cannot be had."""
        super().__init__(fd)
        self.index = index
        self.vm = vm
        self._runner = ffi.new("int *")  # the kernel's id of the thread that ran this vCPU last
        self._answer_at = 0
        self._again = 0
        try:
            self._signal = kick_signal()
            try:
                self._map = mmap.mmap(fd, mmap_size, mmap.MAP_SHARED)
            except OSError as error:
                raise KvmError("mmap of a vCPU", error.errno or 0, cause("mmap", error.errno or 0)) from None
            keep_from_children(self._map)
        except BaseException:
            self.close()
            raise

    def run(self) -> Exit:
        """Run the guest until it needs user space: one KVM_RUN, other Python threads running meanwhile (4.10).

        Gives Interrupted after a kick or a signal, while `immediate_exit` is set, and once after another processor
        started this one. Raises KvmError for every other failure of KVM_RUN.
        """
        error = lib.pyvmm_run(self._fd, self._runner, self._signal)
        if error:
            return self._no_exit(-error)
        page = self._map
        reason, direction, size, port, count, at = _HEAD.unpack_from(page, _REASON)
        if reason == KVM_EXIT_IO:
            if direction == KVM_EXIT_IO_OUT:
                return Pio(port, size, count, True, page[at : at + size * count])
            self._answer_at = at
            return Pio(port, size, count, False)
        if reason == KVM_EXIT_MMIO:
            gpa, data, size, is_write = _MMIO_PART.unpack_from(page, _MMIO)
            if is_write:
                return Mmio(gpa, size, True, data[:size])
            return Mmio(gpa, size, False)
        return decode(page)

    def _no_exit(self, error: int) -> Exit:
        if error == EINTR or (error == EAGAIN and self._try_again()):
            return Interrupted()
        if error == EFAULT and _HEAD.unpack_from(self._map, _REASON)[0] == KVM_EXIT_MEMORY_FAULT:
            return decode(self._map)
        raise KvmError("KVM_RUN", error, cause("KVM_RUN", error))

    def _try_again(self) -> bool:
        """After EAGAIN, which KVM says once to a vCPU that another one starts: whether to call KVM_RUN again."""
        if self.get_mp_state() == KVM_MP_STATE_UNINITIALIZED:
            # Still to be started, but woken by what it must not answer yet: an NMI that waits for it wakes it for ever.
            time.sleep(WAITING)
            return True
        self._again += 1
        return self._again < MOST_AGAIN

    def answer(self, exit: Exit, data: bytes) -> None:
        """Give the guest what it asked for with `exit`, the last one that `run()` gave; the next `run()` delivers it.

        `data` is as long as the exit's class says, little-endian. Raises ValueError otherwise, and for an exit that
        asks for nothing.
        """
        if isinstance(exit, Pio) and not exit.is_write:
            length, at = exit.size * exit.count, self._answer_at
        elif isinstance(exit, Mmio) and not exit.is_write:
            length, at = exit.size, _MMIO_DATA
        elif type(exit) in ANSWERS:
            length, at = 8, ANSWERS[type(exit)]
        else:
            raise ValueError(f"{exit.name} asks for no answer")
        if len(data) != length:
            raise ValueError(f"the answer to {exit.describe()} has {length} bytes, not {len(data)}")
        self._map[at : at + length] = data
        if isinstance(exit, _KEEP_ANSWER):
            exit.data = data

    def refuse(self, exit: Exit) -> None:
        """Let the MSR access `exit` end in #GP in the guest (section 5, KVM_EXIT_X86_RDMSR)."""
        if not isinstance(exit, Rdmsr | Wrmsr):
            raise ValueError(f"{exit.name} cannot be refused")
        self._map[_MSR_ERROR] = 1

    @property
    def immediate_exit(self) -> bool:
        """While set, `run()` comes back before it enters the guest. Any thread; always False once closed."""
        return not self._map.closed and self._map[_IMMEDIATE_EXIT] != 0

    @immediate_exit.setter
    def immediate_exit(self, value: bool) -> None:
        try:
            # One byte, stored by one instruction: KVM reads the old value or the new one.
            self._map[_IMMEDIATE_EXIT] = value
        except ValueError:  # closed, perhaps by another thread just now
            pass

    def kick(self) -> None:
        """Make the `run()` under way, or the next one, come back. From any thread; of no effect once closed."""
        self.immediate_exit = True
        check(lib.pyvmm_kick(self._runner, self._signal), "tgkill")

    def stats_fd(self) -> StatsFd:
        """KVM's counters of this vCPU (4.133; KVM_CAP_BINARY_STATS_FD)."""
        return self.vm.adopt(StatsFd(self.ioctl("KVM_GET_STATS_FD")))

    # --- Registers in the shared page ----------------------------------------------------------------------------

    def enable_sync_regs(self, groups: int) -> None:
        """From now on put groups of registers, KVM_SYNC_X86_, into the shared page at every exit (6.74)."""
        self._u64("kvm_valid_regs", groups)

    def get_sync_regs(self) -> _kvm.kvm_sync_regs:
        """A copy of the registers that the last exit put into the shared page: the groups that were enabled."""
        copy: _kvm.kvm_sync_regs = ffi.new("struct kvm_sync_regs *")
        at = offsetof("struct kvm_run", "s")
        ffi.memmove(copy, self._map[at : at + sizeof("struct kvm_sync_regs")], sizeof("struct kvm_sync_regs"))
        return copy

    def set_sync_regs(self, state: _kvm.kvm_sync_regs, groups: int) -> None:
        """Let the next `run()` begin by setting these groups of registers from `state`."""
        at = offsetof("struct kvm_run", "s")
        self._map[at : at + sizeof("struct kvm_sync_regs")] = bytes(ffi.buffer(state))
        self._u64("kvm_dirty_regs", groups)

    def _u64(self, field: str, value: int) -> None:
        at = offsetof("struct kvm_run", field)
        self._map[at : at + 8] = value.to_bytes(8, "little")

    # --- Coalesced writes ----------------------------------------------------------------------------------------

    def drain_coalesced(self) -> Sequence[tuple[int, bytes, bool]]:
        """Take the writes that KVM collected since the last call, oldest first: (address, data, is a port) (4.116).

        The ring belongs to the VM and is the same through each of its vCPUs; callers see to it that one thread at a
        time drains it.
        """
        start = KVM_COALESCED_MMIO_PAGE_OFFSET * _PAGE
        if len(self._map) < start + _PAGE:
            return ()
        found = []
        head, size = sizeof("struct kvm_coalesced_mmio_ring"), sizeof("struct kvm_coalesced_mmio")
        with memoryview(self._map)[start : start + _PAGE] as page, ffi.from_buffer(page) as raw:
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

    def close(self) -> None:
        """Unmap, then close. Nobody may be in `run()`."""
        self._runner[0] = 0
        try:
            if hasattr(self, "_map"):
                self._map.close()
        finally:
            super().close()
