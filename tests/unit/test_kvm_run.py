"""From the shared page of a vCPU to typed exits and back, on a page that these tests fill: no /dev/kvm."""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from types import SimpleNamespace

import pytest

from pyvmm._native import _kvm
from pyvmm.errors import KvmError
from pyvmm.kvm import exits, vcpu
from pyvmm.kvm.constants import KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED
from pyvmm.kvm.decode import DECODERS, decode
from pyvmm.kvm.vcpu import VcpuFd

DATA = 4096


class FakeLib:
    """The compiled module, but for KVM_RUN, which does what the test says."""

    def __init__(self):
        self.results = []
        self.kicked = []

    def __getattr__(self, name):
        return getattr(_kvm.lib, name)

    def pyvmm_vcpu_run(self, context):
        context.runner = threading.get_native_id()
        if context.fd < 0:
            return -errno.EBADF
        return self.results.pop(0) if self.results else _kvm.lib.pyvmm_serve(context)

    def pyvmm_kick(self, runner, number):
        self.kicked.append(runner[0])
        return 0


@pytest.fixture
def fake(monkeypatch):
    lib = FakeLib()
    monkeypatch.setattr(vcpu, "lib", lib)
    return lib


@pytest.fixture
def cpu(fake):
    """A VcpuFd whose descriptor is a memfd; `cpu.page` is struct kvm_run, to be filled as KVM would."""
    fd = os.memfd_create("vcpu")
    os.ftruncate(fd, 3 * 4096)
    vm = SimpleNamespace(adopt=lambda child: child)
    with VcpuFd(fd, 0, 3 * 4096, vm) as made, mmap.mmap(fd, 3 * 4096) as shared:  # type: ignore[arg-type]
        page = _kvm.ffi.from_buffer("struct kvm_run[]", shared)
        yield made, page[0], shared
        _kvm.ffi.release(page)


def pio(page, direction, size, port, count):
    page.exit_reason = exits.KVM_EXIT_IO
    page.io.direction, page.io.size, page.io.port, page.io.count = direction, size, port, count
    page.io.data_offset = DATA


@pytest.mark.parametrize(("size", "count"), [(1, 1), (2, 1), (4, 1), (1, 4096), (2, 7), (4, 1024)])
def test_pio_write_brings_size_times_count_bytes(cpu, size, count):
    made, page, shared = cpu
    data = bytes(i % 251 for i in range(size * count))
    shared[DATA : DATA + len(data)] = data
    pio(page, exits.KVM_EXIT_IO_OUT, size, 0xFFFF, count)
    exit = made.run()
    assert type(exit) is exits.Pio
    assert (exit.port, exit.size, exit.count, exit.is_write, exit.data) == (0xFFFF, size, count, True, data)
    assert exit.reason == exits.KVM_EXIT_IO


@pytest.mark.parametrize(("size", "count"), [(1, 1), (4, 1), (2, 2048)])
def test_pio_read_takes_exactly_its_bytes(cpu, size, count):
    made, page, shared = cpu
    shared[DATA : DATA + 8] = b"\xee" * 8
    pio(page, exits.KVM_EXIT_IO_IN, size, 0x60, count)
    exit = made.run()
    assert (exit.is_write, exit.data) == (False, b"")
    for wrong in (b"", bytes(size * count - 1), bytes(size * count + 1)):
        with pytest.raises(ValueError, match=f"has {size * count} bytes"):
            made.answer(exit, wrong)
    assert shared[DATA : DATA + 8] == b"\xee" * 8
    answer = bytes(i % 255 for i in range(size * count))
    made.answer(exit, answer)
    assert shared[DATA : DATA + len(answer)] == answer
    assert exit.data == answer


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_a_reply_is_the_answer_as_a_number(cpu, size):
    made, page, shared = cpu
    value = int.from_bytes(b"abcdefgh"[:size], "little")
    page.exit_reason = exits.KVM_EXIT_MMIO
    page.mmio.phys_addr, page.mmio.len, page.mmio.is_write = 0x1000, size, 0
    exit = made.run()
    made.reply(exit, value)
    assert bytes(page.mmio.data)[:size] == exit.data == b"abcdefgh"[:size]
    pio(page, exits.KVM_EXIT_IO_IN, min(size, 4), 0x60, 1)
    exit = made.run()
    made.reply(exit, value & 0xFF)
    assert shared[DATA : DATA + exit.size] == exit.data == b"a\0\0\0"[: exit.size]
    with pytest.raises(OverflowError):
        made.reply(exit, 1 << 8 * exit.size)


@pytest.mark.parametrize("size", range(1, 9))
def test_mmio(cpu, size):
    made, page, _ = cpu
    page.exit_reason = exits.KVM_EXIT_MMIO
    page.mmio.phys_addr, page.mmio.len, page.mmio.is_write = 0xFEDC_BA98_7654, size, 1
    page.mmio.data = list(b"12345678")
    exit = made.run()
    assert type(exit) is exits.Mmio
    assert (exit.gpa, exit.size, exit.is_write, exit.data) == (0xFEDC_BA98_7654, size, True, b"12345678"[:size])
    page.mmio.is_write = 0
    exit = made.run()
    assert (exit.is_write, exit.data) == (False, b"")
    with pytest.raises(ValueError, match="bytes"):
        made.answer(exit, bytes(size + 1))
    made.answer(exit, b"abcdefgh"[:size])
    assert bytes(page.mmio.data) == b"abcdefgh"[:size] + b"12345678"[size:]


def fill(page, **fields):
    for path, value in fields.items():
        *outer, name = path.split("__")
        record = page
        for step in outer:
            record = getattr(record, step)
        setattr(record, name, value)


CASES = [
    (exits.ExceptionExit, {"ex__exception": 13, "ex__error_code": 8}, {"exception": 13, "error_code": 8}),
    (
        exits.Hypercall,
        {"hypercall__nr": 12, "hypercall__args": [1, 2, 3, 4, 5, 6], "hypercall__longmode": 1},
        {"nr": 12, "args": (1, 2, 3, 4, 5, 6), "longmode": True},
    ),
    (
        exits.Debug,
        {"debug__arch__exception": 1, "debug__arch__pc": 5, "debug__arch__dr6": 6, "debug__arch__dr7": 7},
        {"exception": 1, "pc": 5, "dr6": 6, "dr7": 7},
    ),
    (exits.Hlt, {}, {}),
    (exits.IrqWindowOpen, {}, {}),
    (exits.Shutdown, {}, {}),
    (
        exits.FailEntry,
        {"fail_entry__hardware_entry_failure_reason": 0x80000021, "fail_entry__cpu": 3},
        {"hardware_reason": 0x80000021, "cpu": 3},
    ),
    (exits.Interrupted, {}, {}),
    (exits.SetTpr, {}, {}),
    (exits.TprAccess, {"tpr_access__rip": 9, "tpr_access__is_write": 1}, {"rip": 9, "is_write": True}),
    (exits.Nmi, {}, {}),
    (
        exits.InternalError,
        {"internal__suberror": 3, "internal__ndata": 2, "internal__data": [7, 8, 9]},
        {"suberror": 3, "data": (7, 8), "insn_bytes": b""},
    ),
    (
        exits.SystemEvent,
        {"system_event__type": 2, "system_event__ndata": 1, "system_event__data": [5, 6]},
        {"type": 2, "data": (5,)},
    ),
    (exits.IoapicEoi, {"eoi__vector": 0x31}, {"vector": 0x31}),
    (
        exits.Hyperv,
        {"hyperv__type": 2, "hyperv__u__hcall__input": 1, "hyperv__u__hcall__params": [2, 3]},
        {"type": 2, "values": (1, 2, 3)},
    ),
    (exits.Rdmsr, {"msr__index": 0x10, "msr__reason": 2}, {"index": 0x10, "why": 2, "data": b""}),
    (exits.Wrmsr, {"msr__index": 0x10, "msr__reason": 4, "msr__data": 99}, {"index": 0x10, "why": 4, "value": 99}),
    (exits.DirtyRingFull, {}, {}),
    (exits.ApResetHold, {}, {}),
    (exits.BusLock, {}, {}),
    (
        exits.Xen,
        {"xen__type": 1, "xen__u__hcall__cpl": 3, "xen__u__hcall__input": 17, "xen__u__hcall__params": [1] * 6},
        {"type": 1, "longmode": False, "cpl": 3, "input": 17, "params": (1,) * 6},
    ),
    (exits.Notify, {"notify__flags": 1}, {"flags": 1}),
    (
        exits.MemoryFault,
        {"memory_fault__flags": 8, "memory_fault__gpa": 0x1000, "memory_fault__size": 0x2000},
        {"flags": 8, "gpa": 0x1000, "size": 0x2000},
    ),
]


@pytest.mark.parametrize(("kind", "given", "expected"), CASES, ids=[case[0].__name__ for case in CASES])
def test_decoded(cpu, kind, given, expected):
    made, page, _ = cpu
    page.exit_reason = kind.reason
    fill(page, **given)
    exit = made.run()
    assert type(exit) is kind
    assert {name: getattr(exit, name) for name in expected} == expected
    assert exit.describe()


def test_every_reason_is_decoded():
    assert {case[0] for case in CASES} == {exits.EXITS[reason] for reason in DECODERS}
    assert exits.EXITS.keys() - DECODERS.keys() == {
        exits.KVM_EXIT_UNKNOWN,
        exits.KVM_EXIT_IO,
        exits.KVM_EXIT_MMIO,
    }


@pytest.mark.parametrize("reason", [0, 13, 99, 0xFFFFFFFF])
def test_an_unknown_reason_is_an_object_with_number_and_bytes(cpu, reason):
    made, page, _ = cpu
    page.exit_reason = reason
    page.hw.hardware_exit_reason = 0x1122334455667788
    exit = made.run()
    assert type(exit) is exits.Unknown
    assert (exit.reason, len(exit.raw), exit.raw[:8]) == (reason, 256, bytes.fromhex("8877665544332211"))


@pytest.mark.parametrize(("ndata", "size", "expected"), [(4, 3, 3), (4, 15, 15), (4, 200, 15), (0, 3, 0)])
def test_the_instruction_that_was_not_emulated(cpu, ndata, size, expected):
    made, page, _ = cpu
    page.exit_reason = exits.KVM_EXIT_INTERNAL_ERROR
    failure = page.emulation_failure
    failure.suberror, failure.ndata = exits.KVM_INTERNAL_ERROR_EMULATION, ndata
    failure.flags = exits.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
    failure.insn_size, failure.insn_bytes = size, list(range(15))
    assert made.run().insn_bytes == bytes(range(15))[:expected]
    failure.flags = 0
    assert made.run().insn_bytes == b""


@pytest.mark.parametrize("field", ["internal", "system_event"])
def test_a_count_beyond_the_array_is_cut(cpu, field):
    made, page, _ = cpu
    page.exit_reason = exits.KVM_EXIT_INTERNAL_ERROR if field == "internal" else exits.KVM_EXIT_SYSTEM_EVENT
    getattr(page, field).ndata = 0xFFFFFFFF
    assert len(made.run().data) == 16


@pytest.mark.parametrize("kind", [1, 3, 77])
def test_hyperv_types(cpu, kind):
    made, page, _ = cpu
    page.exit_reason = exits.KVM_EXIT_HYPERV
    page.hyperv.type = kind
    page.hyperv.u.synic.msr = 0x40000080
    assert made.run().values[:1] == ((0x40000080,) if kind in (1, 3) else ())


@pytest.mark.parametrize("kind", [exits.Rdmsr, exits.Hypercall, exits.Hyperv, exits.Xen])
def test_eight_byte_answers(cpu, kind):
    made, page, _ = cpu
    page.exit_reason = kind.reason
    page.hyperv.type = exits.KVM_EXIT_HYPERV_HCALL if kind is exits.Hyperv else page.hyperv.type
    exit = made.run()
    with pytest.raises(ValueError, match="8 bytes"):
        made.answer(exit, b"1")
    made.answer(exit, b"12345678")
    value = {
        exits.Rdmsr: lambda: page.msr.data,
        exits.Hypercall: lambda: page.hypercall.ret,
        exits.Hyperv: lambda: page.hyperv.u.hcall.result,
        exits.Xen: lambda: page.xen.u.hcall.result,
    }[kind]()
    assert value == int.from_bytes(b"12345678", "little")


def test_an_msr_access_can_be_refused(cpu):
    made, page, _ = cpu
    made.refuse(exits.Wrmsr(0x10, 1, 2))
    assert page.msr.error == 1
    with pytest.raises(ValueError, match="HLT cannot be refused"):
        made.refuse(exits.Hlt())


def test_what_asks_for_nothing_takes_no_answer(cpu):
    with pytest.raises(ValueError, match="HLT asks for no answer"):
        cpu[0].answer(exits.Hlt(), b"")


def test_writes_take_no_answer(cpu):
    for exit in (exits.Pio(0x80, 1, 1, True, b"\1"), exits.Mmio(0x80, 1, True, b"\1")):
        with pytest.raises(ValueError, match="asks for no answer"):
            cpu[0].answer(exit, b"\0")


def test_interrupted(cpu, fake):
    fake.results = [-errno.EINTR]
    assert type(cpu[0].run()) is exits.Interrupted


def test_a_vcpu_that_is_started_is_run_again(cpu, fake, monkeypatch):
    monkeypatch.setattr(VcpuFd, "get_mp_state", lambda self: KVM_MP_STATE_RUNNABLE)
    fake.results = [-errno.EAGAIN]
    assert type(cpu[0].run()) is exits.Interrupted


def test_a_host_that_says_again_for_ever_is_an_error(cpu, fake, monkeypatch):
    monkeypatch.setattr(VcpuFd, "get_mp_state", lambda self: KVM_MP_STATE_RUNNABLE)
    fake.results = [-errno.EAGAIN] * 200
    with pytest.raises(KvmError, match="pids cgroup") as caught:
        for _ in range(200):
            assert type(cpu[0].run()) is exits.Interrupted
    assert caught.value.errno == errno.EAGAIN
    assert len(fake.results) == 100


def test_a_vcpu_that_waits_to_be_started_is_no_error_and_no_spin(cpu, fake, monkeypatch):
    monkeypatch.setattr(VcpuFd, "get_mp_state", lambda self: KVM_MP_STATE_UNINITIALIZED)
    fake.results = [-errno.EAGAIN] * 200
    began = time.monotonic()
    for _ in range(200):
        assert type(cpu[0].run()) is exits.Interrupted
    assert time.monotonic() - began > 0.2


@pytest.mark.parametrize("error", [errno.ENOMEM, errno.EFAULT, errno.EIO, errno.EBADF])
def test_other_errors_name_the_ioctl_and_the_cause(cpu, fake, error):
    fake.results = [-error]
    with pytest.raises(KvmError) as caught:
        cpu[0].run()
    assert (caught.value.ioctl, caught.value.errno) == ("KVM_RUN", error)
    assert caught.value.cause


def test_a_memory_fault_comes_with_efault(cpu, fake):
    made, page, _ = cpu
    page.exit_reason = exits.KVM_EXIT_MEMORY_FAULT
    fake.results = [-errno.EFAULT]
    assert type(made.run()) is exits.MemoryFault


def test_the_kick_goes_to_the_thread_that_ran_last(cpu, fake):
    made, page, _ = cpu
    page.exit_reason = exits.KVM_EXIT_HLT
    made.kick()  # nobody ran it yet: the flag alone
    assert made.immediate_exit
    assert fake.kicked == [0]
    made.immediate_exit = False
    assert not made.immediate_exit
    tids = []

    def body():
        tids.append(threading.get_native_id())
        made.run()

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    made.kick()
    made.run()
    made.kick()
    assert fake.kicked == [0, tids[0], threading.get_native_id()]
    made.close()
    made.kick()
    assert fake.kicked[3:] == [0]


def test_after_close(cpu):
    made, _, _ = cpu
    made.run()
    made.close()
    made.close()
    made.kick()
    made.immediate_exit = True
    assert made.immediate_exit is False
    assert made.fileno() == -1
    with pytest.raises((ValueError, KvmError)):
        made.run()


def test_coalesced_writes_are_taken_in_order_and_round_the_ring(cpu):
    made, _, shared = cpu
    view = memoryview(shared)[8192:]
    with view, _kvm.ffi.from_buffer(view) as raw:
        ring = _kvm.ffi.cast("struct kvm_coalesced_mmio_ring *", raw)
        capacity = (4096 - 8) // 24
        ring.first, ring.last = capacity - 1, 1
        for index, address in ((capacity - 1, 1), (0, 2)):
            entry = ring.coalesced_mmio[index]
            entry.phys_addr, entry.len, entry.pio = address, 2, address == 2
            entry.data = list(b"abcdefgh")
        assert made.drain_coalesced() == [(1, b"ab", False), (2, b"ab", True)]
        assert made.drain_coalesced() == []
        assert (ring.first, ring.last) == (1, 1)
        # An index that KVM would never write does not lead outside the page.
        ring.first, ring.last = 0xFFFFFFFF, 0
        assert made.drain_coalesced() == []


def test_registers_in_the_shared_page(cpu):
    made, page, _ = cpu
    made.enable_sync_regs(3)
    assert page.kvm_valid_regs == 3
    page.s.regs.regs.rip = 0x1234
    copy = made.get_sync_regs()
    assert copy.regs.rip == 0x1234
    copy.regs.rip = 0x5678
    assert page.s.regs.regs.rip == 0x1234
    made.set_sync_regs(copy, 1)
    assert (page.s.regs.regs.rip, page.kvm_dirty_regs) == (0x5678, 1)


def test_decode_takes_any_writable_buffer():
    assert type(decode(bytearray(4096))) is exits.Unknown
