"""From the union in a vCPU's kvm_run to a typed exit, for the exits that come seldom; run() reads the others itself.

Imports the compiled module (through native.py) and exits.py; vcpu.py alone imports this. Follows the KVM API document
(Documentation/virt/kvm/api.rst), section 5.
"""

from __future__ import annotations

from pyvmm.kvm import exits
from pyvmm.kvm.native import ffi, offsetof

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm._native import _kvm

    Decoder = Callable[[_kvm.kvm_run], exits.Exit]

UNION_SIZE = 256
"""Bytes of the union, by section 5 ("Fix the size of the union")."""


def _words(array: object, count: int) -> tuple[int, ...]:
    return tuple(ffi.unpack(array, count))


def _internal_error(run: _kvm.kvm_run) -> exits.Exit:
    internal = run.internal
    insn_bytes = b""
    words = min(internal.ndata, len(internal.data))
    if internal.suberror == exits.KVM_INTERNAL_ERROR_EMULATION and words:
        failure = run.emulation_failure
        if failure.flags & exits.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES:
            insn_bytes = bytes(failure.insn_bytes[0 : min(failure.insn_size, len(failure.insn_bytes))])
    return exits.InternalError(internal.suberror, _words(internal.data, words), insn_bytes)


def _system_event(run: _kvm.kvm_run) -> exits.Exit:
    event = run.system_event
    return exits.SystemEvent(event.type, _words(event.data, min(event.ndata, len(event.data))))


def _hyperv(run: _kvm.kvm_run) -> exits.Exit:
    hyperv = run.hyperv
    part = {
        exits.KVM_EXIT_HYPERV_SYNIC: ("synic", ("msr", "control", "evt_page", "msg_page")),
        exits.KVM_EXIT_HYPERV_HCALL: ("hcall", ("input",)),
        exits.KVM_EXIT_HYPERV_SYNDBG: (
            "syndbg",
            ("msr", "control", "status", "send_page", "recv_page", "pending_page"),
        ),
    }.get(hyperv.type)
    if part is None:
        return exits.Hyperv(hyperv.type)
    fields = getattr(hyperv.u, part[0])
    values = tuple(int(getattr(fields, name)) for name in part[1])
    if hyperv.type == exits.KVM_EXIT_HYPERV_HCALL:
        values += _words(fields.params, len(fields.params))
    return exits.Hyperv(hyperv.type, values)


def _hypercall(run: _kvm.kvm_run) -> exits.Exit:
    call = run.hypercall
    return exits.Hypercall(call.nr, _words(call.args, len(call.args)), bool(call.longmode))


def _xen(run: _kvm.kvm_run) -> exits.Exit:
    call = run.xen.u.hcall
    return exits.Xen(run.xen.type, bool(call.longmode), call.cpl, call.input, _words(call.params, len(call.params)))


def _debug(run: _kvm.kvm_run) -> exits.Exit:
    arch = run.debug.arch
    return exits.Debug(arch.exception, arch.pc, arch.dr6, arch.dr7)


DECODERS: dict[int, Decoder] = {
    exits.KVM_EXIT_EXCEPTION: lambda run: exits.ExceptionExit(run.ex.exception, run.ex.error_code),
    exits.KVM_EXIT_HYPERCALL: _hypercall,
    exits.KVM_EXIT_DEBUG: _debug,
    exits.KVM_EXIT_HLT: lambda run: exits.Hlt(),
    exits.KVM_EXIT_IRQ_WINDOW_OPEN: lambda run: exits.IrqWindowOpen(),
    exits.KVM_EXIT_SHUTDOWN: lambda run: exits.Shutdown(),
    exits.KVM_EXIT_FAIL_ENTRY: lambda run: exits.FailEntry(
        run.fail_entry.hardware_entry_failure_reason, run.fail_entry.cpu
    ),
    exits.KVM_EXIT_INTR: lambda run: exits.Interrupted(),
    exits.KVM_EXIT_SET_TPR: lambda run: exits.SetTpr(),
    exits.KVM_EXIT_TPR_ACCESS: lambda run: exits.TprAccess(run.tpr_access.rip, bool(run.tpr_access.is_write)),
    exits.KVM_EXIT_NMI: lambda run: exits.Nmi(),
    exits.KVM_EXIT_INTERNAL_ERROR: _internal_error,
    exits.KVM_EXIT_SYSTEM_EVENT: _system_event,
    exits.KVM_EXIT_IOAPIC_EOI: lambda run: exits.IoapicEoi(run.eoi.vector),
    exits.KVM_EXIT_HYPERV: _hyperv,
    exits.KVM_EXIT_X86_RDMSR: lambda run: exits.Rdmsr(run.msr.index, run.msr.reason),
    exits.KVM_EXIT_X86_WRMSR: lambda run: exits.Wrmsr(run.msr.index, run.msr.reason, run.msr.data),
    exits.KVM_EXIT_DIRTY_RING_FULL: lambda run: exits.DirtyRingFull(),
    exits.KVM_EXIT_AP_RESET_HOLD: lambda run: exits.ApResetHold(),
    exits.KVM_EXIT_X86_BUS_LOCK: lambda run: exits.BusLock(),
    exits.KVM_EXIT_XEN: _xen,
    exits.KVM_EXIT_NOTIFY: lambda run: exits.Notify(run.notify.flags),
    exits.KVM_EXIT_MEMORY_FAULT: lambda run: exits.MemoryFault(
        run.memory_fault.flags, run.memory_fault.gpa, run.memory_fault.size
    ),
}

ANSWERS: dict[type[exits.Exit], int] = {
    exits.Rdmsr: offsetof("struct kvm_run", "msr", "data"),
    exits.Hypercall: offsetof("struct kvm_run", "hypercall", "ret"),
    exits.Hyperv: offsetof("struct kvm_run", "hyperv", "u", "hcall", "result"),
    exits.Xen: offsetof("struct kvm_run", "xen", "u", "hcall", "result"),
}
"""Where in kvm_run the 8-byte answer to such an exit goes."""


def decode(page: object) -> exits.Exit:
    """The exit that the shared page of a vCPU, any writable buffer, describes."""
    with ffi.from_buffer("struct kvm_run[]", page) as pages:
        run = pages[0]
        reason = run.exit_reason
        decoder = DECODERS.get(reason)
        if decoder is not None:
            return decoder(run)
        return exits.Unknown(reason, bytes(ffi.buffer(ffi.addressof(run, "hw"), UNION_SIZE)))
