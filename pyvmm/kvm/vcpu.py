"""`VcpuFd`: one virtual processor: running it, answering it, getting it to stop. Its registers are in vcpustate.py.

Imports the rest of pyvmm.kvm but system.py and vm.py. `run()` is the only place that reads the union of kvm_run (what
is seldom through decode.py), `answer()` and `refuse()` the only ones that write it, but for the helper's run loop,
which deals with accesses that devices leave to it (pyvmm.hot). Follows the KVM API document
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
from pyvmm.kvm.constants import (
    KVM_CAP_SYNC_REGS,
    KVM_GUESTDBG_SINGLESTEP,
    KVM_MP_STATE_UNINITIALIZED,
    KVM_SYNC_X86_REGS,
)
from pyvmm.kvm.descriptor import check
from pyvmm.kvm.exits import (
    KVM_EXIT_IO,
    KVM_EXIT_IO_OUT,
    KVM_EXIT_MEMORY_FAULT,
    KVM_EXIT_X86_RDMSR,
    KVM_EXIT_X86_WRMSR,
    Exit,
    Interrupted,
    Mmio,
    Pio,
)
from pyvmm.kvm.native import constant, ffi, lib, offsetof, sizeof
from pyvmm.kvm.vcpustate import VcpuState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pyvmm._native import _kvm
    from pyvmm.kvm.hot import NativeHot
    from pyvmm.kvm.served import Tell
    from pyvmm.kvm.stats import StatsFd
    from pyvmm.kvm.tracing import Chunks, Tracing
    from pyvmm.kvm.vm import VmFd

_REASON = offsetof("struct kvm_run", "exit_reason")
_IMMEDIATE_EXIT = offsetof("struct kvm_run", "immediate_exit")
_MMIO = offsetof("struct kvm_run", "mmio")
_MSR_ERROR = offsetof("struct kvm_run", "msr", "error")
_HEAD = Struct(f"<I{offsetof('struct kvm_run', 'io') - _REASON - 4 if _MMIO else 0}xBBHIQ")
"""exit_reason, and the union read as kvm_run.io: direction, size, port, count, data_offset."""
_FIELDS = Struct("<QQII")
"""Of an access in the helper's context: address, value, size, and where in the page its data is."""
_FIELDS_AT = offsetof("struct pyvmm_vcpu", "address")
_OTHER = constant("PYVMM_OTHER")
_PORT_WRITE, _PORT_READ = constant("PYVMM_PORT_WRITE"), constant("PYVMM_PORT_READ")
_MMIO_WRITE, _MMIO_READ = constant("PYVMM_MMIO_WRITE"), constant("PYVMM_MMIO_READ")
_NO_EXIT = constant("PYVMM_NO_EXIT")
_KIND, _POSTED, _WAKE = constant("PYVMM_KIND"), constant("PYVMM_POSTED"), constant("PYVMM_WAKE")

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

    __slots__ = (
        "_again",
        "_answer_at",
        "_context",
        "_debugged",
        "_fields",
        "_hot",
        "_map",
        "_page",
        "_runner",
        "_tell",
        "_tracing",
        "_watched",
        "index",
    )

    def __init__(self, fd: int, index: int, mmap_size: int, vm: VmFd) -> None:
        """Takes over `fd`, and closes it if the map cannot be had."""
        super().__init__(fd)
        self.index = index
        self.vm = vm
        self._answer_at = 0
        self._again = 0
        self._hot: NativeHot | None = None
        self._tell: Tell | None = None
        self._debugged = self._watched = False
        self._tracing: Tracing | None = None
        self._page: Any = None
        self._context: _kvm.pyvmm_vcpu = ffi.new("struct pyvmm_vcpu *", {"fd": fd})
        # The kernel's id of the thread that ran this vCPU last.
        self._runner = ffi.addressof(self._context, "runner")
        self._fields = memoryview(ffi.buffer(self._context))[_FIELDS_AT : _FIELDS_AT + _FIELDS.size]
        try:
            self._context.signal_number = kick_signal()
            try:
                self._map = mmap.mmap(fd, mmap_size, mmap.MAP_SHARED)
            except OSError as error:
                raise KvmError("mmap of a vCPU", error.errno or 0, cause("mmap", error.errno or 0)) from None
            keep_from_children(self._map)
            self._page = ffi.from_buffer("struct kvm_run[]", self._map)
            self._context.page = self._page
            self._context.page_size = mmap_size
        except BaseException:
            self.close()
            raise

    def run(self) -> Exit:
        """Run the guest until it needs user space, other Python threads running meanwhile (4.10).

        Gives Interrupted after a kick or a signal, while `immediate_exit` is set, and once after another processor
        started this one. Raises KvmError for every other failure of KVM_RUN.
        """
        kind = lib.pyvmm_vcpu_run(self._context)
        if not 0 <= kind <= _MMIO_READ or self._tell is not None:
            kind = self._attend(kind)
            if kind < 0:
                return self._no_exit(-kind)
        if kind == _OTHER:
            return self._other()
        address, value, size, self._answer_at = _FIELDS.unpack(self._fields)
        if kind == _PORT_WRITE:
            return Pio(address, size, 1, True, None, value)
        if kind == _PORT_READ:
            return Pio(address, size, 1, False)
        if kind == _MMIO_WRITE:
            return Mmio(address, size, True, None, value)
        return Mmio(address, size, False)

    def _attend(self, kind: int) -> int:
        """See to what the helper wants beside an exit; what kind of exit it is, or minus an error number."""
        while True:
            if self._tell is not None:
                from pyvmm.kvm.served import untold

                for exit, tsc, rip in untold(self._context):
                    self._tell(exit, tsc, rip)
            hot = self._hot
            if kind >= 0 and hot is not None:
                if kind & _WAKE:
                    hot.wake()
                if kind & _POSTED:
                    hot.drain()
                kind &= _KIND
            if kind != _NO_EXIT:
                return kind
            if self._tracing is not None:
                self._tracing.go_on()
            kind = lib.pyvmm_vcpu_run(self._context)

    def _other(self) -> Exit:
        """The exit that is in the page, if it is not the access that the helper has read."""
        page = self._map
        reason, direction, size, port, count, at = _HEAD.unpack_from(page, _REASON)
        if reason != KVM_EXIT_IO:
            return self._seldom()
        if direction == KVM_EXIT_IO_OUT:
            return Pio(port, size, count, True, page[at : at + size * count])
        self._answer_at = at
        return Pio(port, size, count, False)

    def _seldom(self) -> Exit:
        from pyvmm.kvm.decode import decode

        return decode(self._map)

    def _no_exit(self, error: int) -> Exit:
        if error == EINTR or (error == EAGAIN and self._try_again()):
            return Interrupted()
        if error == EFAULT and _HEAD.unpack_from(self._map, _REASON)[0] == KVM_EXIT_MEMORY_FAULT:
            return self._seldom()
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
        kind = exit.__class__
        if kind is Pio and not exit.is_write:  # type: ignore[attr-defined]
            length, at = exit.size * exit.count, self._answer_at  # type: ignore[attr-defined]
        elif kind is Mmio and not exit.is_write:  # type: ignore[attr-defined]
            length, at = exit.size, self._answer_at  # type: ignore[attr-defined]
        else:
            length, at = 8, self._answer_to(exit)
        if len(data) != length:
            raise ValueError(f"the answer to {exit.describe()} has {length} bytes, not {len(data)}")
        self._map[at : at + length] = data
        if kind is Pio or kind is Mmio:
            exit._data = data  # type: ignore[attr-defined]
        elif exit.reason == KVM_EXIT_X86_RDMSR:
            exit.data = data  # type: ignore[attr-defined]

    def _answer_to(self, exit: Exit) -> int:
        """Where the answer to an exit goes that comes seldom."""
        from pyvmm.kvm.decode import ANSWERS

        if type(exit) not in ANSWERS:
            raise ValueError(f"{exit.name} asks for no answer")
        return ANSWERS[type(exit)]

    def reply(self, exit: Any, value: int) -> None:
        """`answer` to `exit`, the last one that `run()` gave, if that is a read of one item: with a number.

        Nothing is checked but that the number fits: OverflowError. Every read of a device comes through here.
        """
        at, size = self._answer_at, exit.size
        exit._data = self._map[at : at + size] = value.to_bytes(size, "little")

    def refuse(self, exit: Exit) -> None:
        """Let the MSR access `exit` end in #GP in the guest (section 5, KVM_EXIT_X86_RDMSR)."""
        if exit.reason not in (KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR):
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
        check(lib.pyvmm_kick(self._runner, self._context.signal_number), "tgkill")

    # --- What the helper deals with ------------------------------------------------------------------------------

    def serve(self, hot: NativeHot) -> None:
        """Leave to the helper what the devices of `hot` do. Before the first `run()`."""
        self._hot = hot
        self._choose()

    def tell(self, tell: Tell, at_once: bool) -> None:
        """Call `tell` for each access that the helper deals with, in order, before the next `run()` returns.

        With `at_once` it deals with none any more: every access is an exit. From any thread.
        """
        if at_once:
            self._watched = True
            self._choose()
            return
        self._tell = tell
        self._sync_rip()
        self._context.tracing = 1

    def trace(self, chunks: Chunks) -> None:
        """Have the helper record every exit in the pieces of a file that `chunks` gives. Before the first `run()`."""
        from pyvmm.kvm.tracing import Tracing

        self._sync_rip()
        self._tracing = Tracing(self._context, chunks)

    def _sync_rip(self) -> None:
        if not self._context.sync_regs and self.vm.check_extension(KVM_CAP_SYNC_REGS) & KVM_SYNC_X86_REGS:
            self._u64("kvm_valid_regs", self._context.page.kvm_valid_regs | KVM_SYNC_X86_REGS)
            self._context.sync_regs = 1

    def guest_debug(self, control: int, debugreg: Sequence[int] = ()) -> None:
        """As VcpuState's; while the guest is stepped every access is an exit."""
        super().guest_debug(control, debugreg)
        self._debugged = control & KVM_GUESTDBG_SINGLESTEP != 0
        self._choose()

    def _choose(self) -> None:
        served = self._hot is not None and not self._debugged and not self._watched
        self._context.hot = self._hot.memory if served and self._hot is not None else ffi.NULL

    def served(self) -> dict[type[Exit], int]:
        """How many accesses the helper has dealt with, by the class of exit that each would have been. Any thread."""
        return {Pio: self._context.port_accesses, Mmio: self._context.mmio_accesses}

    def history(self, seen: Sequence[Exit], limit: int) -> list[Exit]:
        """The last `limit` exits and accesses, oldest first; `seen` are the exits. While the vCPU stands still."""
        from pyvmm.kvm.served import merged

        return merged(self._context, seen, limit)

    def stats_fd(self) -> StatsFd:
        """KVM's counters of this vCPU (4.133; KVM_CAP_BINARY_STATS_FD)."""
        from pyvmm.kvm.stats import StatsFd

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
        from pyvmm.kvm.coalesced import drain

        return drain(self._map)

    def close(self) -> None:
        """Unmap, then close. Nobody may be in `run()`."""
        self._runner[0] = 0
        self._context.fd = -1
        if self._tracing is not None:
            self._tracing.close()
        try:
            if self._page is not None:
                page, self._page = self._page, None
                self._context.page = ffi.NULL
                ffi.release(page)
            if hasattr(self, "_map"):
                self._map.close()
        finally:
            super().close()
