"""Every group of a vCPU's registers, read, set and read again; and what only a vCPU can be asked."""

from __future__ import annotations

import pytest

from pyvmm._native._kvm import ffi
from pyvmm.errors import KvmError
from pyvmm.kvm import Kvm
from pyvmm.kvm import constants as k
from pyvmm.kvm.entries import CpuidEntry
from pyvmm.kvm.exits import Hlt, Pio
from tests.support.tinyvm import CODE, tiny_vm

pytestmark = pytest.mark.needs("kvm")

IA32_TSC, IA32_SYSENTER_CS, STAR = 0x10, 0x174, 0xC0000081
NO_SUCH_MSR = 0xDEAD_0000


def raw(pointer):
    return bytes(ffi.buffer(pointer))


@pytest.fixture
def tiny():
    with tiny_vm(irqchip=True) as made:
        yield made


def has(tiny, capability, name):
    if not tiny.vm.check_extension(capability):
        pytest.skip(f"this host's KVM lacks {name}")


def test_regs(tiny):
    regs = tiny.vcpu.get_regs()
    names = [name for name, _ in ffi.typeof("struct kvm_regs").fields if name != "rflags"]
    for number, name in enumerate(names):
        setattr(regs, name, 0x1122334455660000 + number)
    tiny.vcpu.set_regs(regs)
    again = tiny.vcpu.get_regs()
    assert [getattr(again, name) for name in names] == [0x1122334455660000 + i for i in range(17)]


def test_sregs(tiny):
    sregs = tiny.vcpu.get_sregs()
    sregs.gdt.base, sregs.gdt.limit = 0x1234000, 0x7F
    sregs.fs.base, sregs.cr2, sregs.cr8 = 0x40, 0xFEDCBA9876543210, 5
    tiny.vcpu.set_sregs(sregs)
    again = tiny.vcpu.get_sregs()
    assert (again.gdt.base, again.gdt.limit) == (0x1234000, 0x7F)
    assert (again.fs.base, again.cr2, again.cr8) == (0x40, 0xFEDCBA9876543210, 5)
    assert len(again.interrupt_bitmap) == 4


def test_contradicting_sregs_say_so(tiny):
    sregs = tiny.vcpu.get_sregs()
    sregs.cr0 |= 1 << 31  # paging without protection
    with pytest.raises(KvmError, match="contradict each other"):
        tiny.vcpu.set_sregs(sregs)


def test_sregs2(tiny):
    has(tiny, k.KVM_CAP_SREGS2, "KVM_CAP_SREGS2")
    sregs = tiny.vcpu.get_sregs2()
    sregs.cr2 = 0x1000
    tiny.vcpu.set_sregs2(sregs)
    assert tiny.vcpu.get_sregs().cr2 == 0x1000


def test_fpu(tiny):
    fpu = tiny.vcpu.get_fpu()
    fpu.fcw = 0x27F
    fpu.xmm[3] = list(range(16))
    tiny.vcpu.set_fpu(fpu)
    again = tiny.vcpu.get_fpu()
    assert (again.fcw, bytes(again.xmm[3])) == (0x27F, bytes(range(16)))


def test_xsave(tiny):
    has(tiny, k.KVM_CAP_XSAVE, "KVM_CAP_XSAVE")
    state = tiny.vcpu.get_xsave()
    size = tiny.vm.check_extension(k.KVM_CAP_XSAVE2) or 4096
    assert ffi.sizeof(state[0]) == 4096
    assert len(ffi.buffer(state)) >= size
    state.region[128] = 3  # XSTATE_BV: x87 and SSE
    state.region[40] = 0x12345678  # the first word of XMM0
    tiny.vcpu.set_xsave(state)
    assert bytes(tiny.vcpu.get_fpu().xmm[0])[:4] == b"\x78\x56\x34\x12"


def test_xsave_of_an_older_kvm(tiny, monkeypatch):
    has(tiny, k.KVM_CAP_XSAVE, "KVM_CAP_XSAVE")
    new = raw(tiny.vcpu.get_xsave())
    monkeypatch.setattr(type(tiny.vm), "check_extension", lambda self, cap: 0)
    assert raw(tiny.vcpu.get_xsave()) == new[:4096]


def test_xcrs(tiny):
    has(tiny, k.KVM_CAP_XCRS, "KVM_CAP_XCRS")
    xcrs = tiny.vcpu.get_xcrs()
    assert xcrs.nr_xcrs == 1
    assert (xcrs.xcrs[0].xcr, xcrs.xcrs[0].value & 1) == (0, 1)
    tiny.vcpu.set_xcrs(xcrs)


def test_msrs(tiny):
    vcpu = tiny.vcpu
    vcpu.set_msrs({IA32_SYSENTER_CS: 0x10, STAR: 0x23001000000000})
    assert vcpu.get_msrs([STAR, IA32_SYSENTER_CS]) == {STAR: 0x23001000000000, IA32_SYSENTER_CS: 0x10}
    assert vcpu.get_msrs([]) == {}
    vcpu.set_msrs({})
    assert vcpu.get_msrs([STAR, NO_SUCH_MSR, IA32_SYSENTER_CS]) == {STAR: 0x23001000000000}
    with pytest.raises(ValueError, match="KVM refuses 0x1 for MSR 0xdead0000"):
        vcpu.set_msrs({STAR: 1, NO_SUCH_MSR: 1, IA32_SYSENTER_CS: 7})
    assert vcpu.get_msrs([STAR, IA32_SYSENTER_CS]) == {STAR: 1, IA32_SYSENTER_CS: 0x10}


def test_every_listed_msr_can_be_read(tiny):
    with Kvm() as kvm:
        listed = kvm.msr_index_list()
        features = kvm.msr_feature_index_list()
    assert len(listed) == len(set(listed)) > 10
    assert STAR in listed
    assert all(isinstance(index, int) for index in features)
    values: dict[int, int] = {}
    for index in listed:
        values |= tiny.vcpu.get_msrs([index])
    assert len(values) > len(listed) * 3 // 4  # some are listed for what the guest's CPUID does not show


def test_cpuid(tiny):
    with Kvm() as kvm:
        supported = kvm.supported_cpuid()
        emulated = kvm.emulated_cpuid()
    assert supported[0].function == 0
    assert all(isinstance(entry, CpuidEntry) for entry in emulated)
    vcpu = tiny.vm.create_vcpu(1)
    vcpu.set_cpuid2(supported)
    again = vcpu.get_cpuid2()
    assert {(entry.function, entry.index) for entry in again} == {(entry.function, entry.index) for entry in supported}
    vcpu.set_cpuid2([CpuidEntry(0, eax=1, ebx=0x11111111, ecx=0x22222222, edx=0x33333333), CpuidEntry(1)])
    assert vcpu.get_cpuid2()[0].ebx == 0x11111111


def test_the_guest_sees_what_was_set():
    # mov eax, 0x40000000; cpuid; mov [0x2000], ebx; hlt
    with tiny_vm(b"\x66\xb8\x00\x00\x00\x40\x0f\xa2\x66\x89\x1e\x00\x20\xf4") as tiny:
        with Kvm() as kvm:
            entries = [entry for entry in kvm.supported_cpuid() if entry.function != 0x40000000]
        tiny.vcpu.set_cpuid2([*entries, CpuidEntry(0x40000000, eax=0x40000000, ebx=0x6D6D7670)])
        assert isinstance(tiny.run(), Hlt)
        assert tiny.memory[0x2000:0x2004] == b"pvmm"


def test_lapic(tiny):
    lapic = tiny.vcpu.get_lapic()
    assert len(lapic.regs) == 1024
    assert int.from_bytes(bytes(lapic.regs[0x30:0x34]), "little") & 0xFF >= 0x10  # the version register: integrated
    lapic.regs[0x80] = 0x20  # task priority
    tiny.vcpu.set_lapic(lapic)
    assert tiny.vcpu.get_lapic().regs[0x80] == 0x20
    assert tiny.vcpu.get_sregs().cr8 == 2


def test_no_lapic_without_irqchip():
    with tiny_vm() as tiny, pytest.raises(KvmError, match="no in-kernel interrupt controllers"):
        tiny.vcpu.get_lapic()


def test_mp_state(tiny):
    second = tiny.vm.create_vcpu(1)
    assert tiny.vcpu.get_mp_state() == k.KVM_MP_STATE_RUNNABLE
    assert second.get_mp_state() == k.KVM_MP_STATE_UNINITIALIZED
    second.set_mp_state(k.KVM_MP_STATE_HALTED)
    assert second.get_mp_state() == k.KVM_MP_STATE_HALTED


def test_vcpu_events_and_nmi(tiny):
    has(tiny, k.KVM_CAP_USER_NMI, "KVM_CAP_USER_NMI")
    assert tiny.vcpu.get_vcpu_events().nmi.pending == 0
    tiny.vcpu.nmi()
    events = tiny.vcpu.get_vcpu_events()
    assert events.nmi.pending == 1
    events.nmi.pending = 0
    events.flags = k.KVM_VCPUEVENT_VALID_NMI_PENDING
    tiny.vcpu.set_vcpu_events(events)
    assert tiny.vcpu.get_vcpu_events().nmi.pending == 0


def test_debugregs(tiny):
    has(tiny, k.KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS")
    state = tiny.vcpu.get_debugregs()
    state.db = [1, 2, 3, 4]
    state.dr7 = 0x400
    tiny.vcpu.set_debugregs(state)
    again = tiny.vcpu.get_debugregs()
    assert (list(again.db), again.dr7) == ([1, 2, 3, 4], 0x400)


def test_translate(tiny):
    assert tiny.vcpu.translate(0x1234) == 0x1234  # no paging
    sregs = tiny.vcpu.get_sregs()
    # 4-level paging with one page of 2 MiB: gva 0x40000000 is gpa 0.
    for gpa, entry in ((0x10000, 0x11003), (0x11008, 0x12003), (0x12000, 0x83)):
        tiny.memory[gpa : gpa + 8] = entry.to_bytes(8, "little")
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = sregs.cr0 | 1 << 31 | 1, 0x10000, 1 << 5, 0x500
    sregs.cs.l, sregs.cs.db = 1, 0
    tiny.vcpu.set_sregs(sregs)
    assert tiny.vcpu.translate(0x40001234) == 0x1234
    assert tiny.vcpu.translate(0x1234) is None


def test_tsc_khz(tiny):
    has(tiny, k.KVM_CAP_GET_TSC_KHZ, "KVM_CAP_GET_TSC_KHZ")
    khz = tiny.vcpu.get_tsc_khz()
    assert 100_000 < khz < 20_000_000
    if tiny.vm.check_extension(k.KVM_CAP_TSC_CONTROL):
        tiny.vcpu.set_tsc_khz(khz // 2)
        assert tiny.vcpu.get_tsc_khz() == khz // 2
    else:
        tiny.vcpu.set_tsc_khz(khz)


def test_tsc_khz_of_the_vm(tiny):
    has(tiny, k.KVM_CAP_VM_TSC_CONTROL, "KVM_CAP_VM_TSC_CONTROL")
    khz = tiny.vm.get_tsc_khz()
    tiny.vm.set_tsc_khz(khz)
    assert tiny.vm.get_tsc_khz() == khz


def test_tsc_offset_is_an_attribute(tiny):
    if not tiny.vcpu.has_attribute(k.KVM_VCPU_TSC_CTRL, k.KVM_VCPU_TSC_OFFSET):
        pytest.skip("this host's KVM lacks KVM_VCPU_TSC_OFFSET")
    offset = tiny.vcpu.get_attribute(k.KVM_VCPU_TSC_CTRL, k.KVM_VCPU_TSC_OFFSET)
    tiny.vcpu.set_attribute(k.KVM_VCPU_TSC_CTRL, k.KVM_VCPU_TSC_OFFSET, offset - 1000 & (1 << 64) - 1)
    now = tiny.vcpu.get_attribute(k.KVM_VCPU_TSC_CTRL, k.KVM_VCPU_TSC_OFFSET)
    if not now and not offset:
        pytest.skip("this host's KVM accepts KVM_VCPU_TSC_OFFSET and does nothing")
    assert now == offset - 1000 & (1 << 64) - 1


def test_attributes_that_are_not_there(tiny):
    assert not tiny.vcpu.has_attribute(77, 77)
    with pytest.raises(KvmError, match="KVM_GET_DEVICE_ATTR"):
        tiny.vcpu.get_attribute(77, 77)


def test_kvmclock_ctrl_without_kvmclock(tiny):
    with pytest.raises(KvmError, match="KVM_KVMCLOCK_CTRL"):
        tiny.vcpu.kvmclock_ctrl()


def test_enable_cap_of_a_vcpu(tiny):
    with pytest.raises(KvmError, match=r"KVM_ENABLE_CAP .*lacks the capability"):
        tiny.vcpu.enable_cap(0xFFFF)


def test_sync_regs():
    # mov bx, 0x1234; out 0x80, al; out 0x80, al; hlt
    with tiny_vm(b"\xbb\x34\x12\xe6\x80\xe6\x80\xf4") as tiny:
        groups = tiny.vm.check_extension(k.KVM_CAP_SYNC_REGS)
        if not groups & k.KVM_SYNC_X86_REGS:
            pytest.skip("this host's KVM lacks KVM_CAP_SYNC_REGS")
        assert tiny.vcpu.get_sync_regs().regs.rbx == 0
        tiny.vcpu.enable_sync_regs(groups)
        assert isinstance(tiny.run(), Pio)
        state = tiny.vcpu.get_sync_regs()
        assert state.regs.rbx == 0x1234
        assert CODE < state.regs.rip <= CODE + 5
        assert raw(ffi.addressof(state, "regs")) == raw(tiny.vcpu.get_regs())
        state.regs.rax = 0x77
        tiny.vcpu.set_sync_regs(state, k.KVM_SYNC_X86_REGS)
        exit = tiny.run()
        assert isinstance(exit, Pio)
        assert exit.data == b"\x77"


def test_statistics():
    # out 0x80, al; jmp back
    with tiny_vm(b"\xe6\x80\xeb\xfc") as tiny:
        has(tiny, k.KVM_CAP_BINARY_STATS_FD, "KVM_CAP_BINARY_STATS_FD")
        with tiny.vcpu.stats_fd() as stats:
            before = stats.read()
            assert "vcpu" in stats.id
            for _ in range(100):
                tiny.vcpu.run()
            after = stats.read()
        with tiny.vm.stats_fd() as of_vm:
            assert isinstance(of_vm.read()["remote_tlb_flush"], int)
    assert after.keys() == before.keys()
    assert after["exits"] >= before["exits"] + 100  # type: ignore[operator]
    assert any(isinstance(value, tuple) for value in after.values())  # histograms
