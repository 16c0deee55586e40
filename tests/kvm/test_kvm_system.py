"""/dev/kvm itself, what a VM can be asked, and that nothing is left when all is closed."""

from __future__ import annotations

import fcntl
import gc
import mmap
import os
import resource

import pytest

from pyvmm._native._kvm import ffi
from pyvmm.errors import KvmError
from pyvmm.kvm import Kvm
from pyvmm.kvm import constants as k
from pyvmm.kvm.exits import Hlt
from tests.support.tinyvm import tiny_vm

pytestmark = pytest.mark.needs("kvm")


def footprint():
    """This process's descriptors and its mappings of KVM's."""
    gc.collect()
    fds = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            fds.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # the one that listdir used
            pass
    with open("/proc/self/maps") as maps:
        return sorted(fds), sum("kvm" in line for line in maps)


def test_the_host():
    with Kvm() as kvm:
        assert kvm.api_version() == 12
        assert kvm.vcpu_mmap_size() >= ffi.sizeof("struct kvm_run")
        assert kvm.check_extension(k.KVM_CAP_USER_MEMORY) == 1
        assert kvm.check_extension(0xFFFF) == 0
        assert kvm.check_extension(k.KVM_CAP_NR_MEMSLOTS) > 8
    with pytest.raises(KvmError, match=r"KVM_GET_API_VERSION failed: Bad file descriptor .*closed"):
        kvm.api_version()


def test_clock():
    with tiny_vm(irqchip=True) as tiny:
        if not tiny.vm.check_extension(k.KVM_CAP_ADJUST_CLOCK):
            pytest.skip("this host's KVM lacks KVM_CAP_ADJUST_CLOCK")
        clock = tiny.vm.get_clock()
        clock.clock, clock.flags = 10**15, 0
        tiny.vm.set_clock(clock)
        assert 10**15 <= tiny.vm.get_clock().clock < 10**15 + 10**10


def test_before_the_first_vcpu():
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.set_tss_addr(0xFFFBD000)
        vm.set_identity_map_addr(0xFFFBC000)
        vm.set_boot_cpu(1)
        vm.create_irqchip()
        assert vm.create_vcpu(0).get_mp_state() == k.KVM_MP_STATE_UNINITIALIZED
        assert vm.create_vcpu(1).get_mp_state() == k.KVM_MP_STATE_RUNNABLE
        with pytest.raises(KvmError, match="KVM_CREATE_VCPU"):
            vm.create_vcpu(1 << 20)


def test_a_device():
    with Kvm() as kvm, kvm.create_vm() as vm:
        with pytest.raises(KvmError, match="KVM_CREATE_DEVICE"):
            vm.create_device(0xFFFF)
        assert not vm.has_device(0xFFFF)
        if not vm.has_device(k.KVM_DEV_TYPE_VFIO):
            pytest.skip("this host's KVM has no device to create (KVM_DEV_TYPE_VFIO)")
        with vm.create_device(k.KVM_DEV_TYPE_VFIO) as device:
            assert device.type == k.KVM_DEV_TYPE_VFIO
            assert not device.has_attribute(77, 77)


def test_every_descriptor_is_closed_on_exec_and_no_map_is_inherited():
    with tiny_vm(irqchip=True) as tiny:
        fds = [tiny.vm.fileno(), tiny.vcpu.fileno()]
        if tiny.vm.check_extension(k.KVM_CAP_BINARY_STATS_FD):
            fds += [tiny.vm.stats_fd().fileno(), tiny.vcpu.stats_fd().fileno()]
        for fd in fds:
            assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        for name in os.listdir("/proc/self/fd"):
            path = f"/proc/self/fd/{name}"
            if os.path.islink(path) and "kvm" in os.readlink(path):
                assert fcntl.fcntl(int(name), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        with open("/proc/self/smaps") as smaps:
            text = smaps.read()
        flags = [part.partition("VmFlags:")[2].splitlines()[0] for part in text.split("anon_inode:kvm-vcpu")[1:]]
        assert flags
        assert all(" dc " in line for line in flags)


def test_nothing_is_left():
    with tiny_vm() as tiny:  # warm: imports, the kick signal
        tiny.run()
    before = footprint()
    for _ in range(10):
        with tiny_vm(irqchip=True) as tiny:
            tiny.vm.create_vcpu(1)
            tiny.vm.create_pit2()
            if tiny.vm.check_extension(k.KVM_CAP_BINARY_STATS_FD):
                tiny.vcpu.stats_fd().read()
            assert footprint() != before
    assert footprint() == before


def test_nothing_is_left_when_making_fails_halfway():
    """At every number of free descriptors: an error that says so, or a VM that runs, and nothing left."""
    with tiny_vm() as tiny:
        tiny.run()
    before = footprint()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    worked = 0
    memory = mmap.mmap(-1, 4096)
    memory[0] = 0xF4
    try:
        for free in range(12):
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + free, hard))
            try:
                with Kvm() as kvm, kvm.create_vm() as vm:
                    vm.set_user_memory_region(0, 0, memoryview(memory))
                    vcpu = vm.create_vcpu(0)
                    sregs = vcpu.get_sregs()
                    sregs.cs.base = sregs.cs.selector = 0
                    vcpu.set_sregs(sregs)
                    vcpu.set_regs(ffi.new("struct kvm_regs *", {"rflags": 2}))
                    assert isinstance(vcpu.run(), Hlt)
                worked += 1
            except OSError as error:
                assert "as many files open as it may" in str(error)
                assert not worked
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        memory.close()
    assert worked
    assert footprint() == before


def test_closing_the_vm_closes_what_it_made_and_closing_twice_is_no_error():
    with Kvm() as kvm:
        vm = kvm.create_vm()
        vcpu = vm.create_vcpu(0)
        vm.close()
        assert (vm.fileno(), vcpu.fileno()) == (-1, -1)
        vcpu.kick()
        vcpu.close()
        vm.close()


def test_a_vcpu_may_be_closed_before_its_vm():
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.create_vcpu(0).close()
        vm.create_vcpu(1)


def test_forgotten_vms_are_collected():
    before = footprint()
    kvm = Kvm()
    kvm.create_vm().create_vcpu(0)
    del kvm
    assert footprint() == before
