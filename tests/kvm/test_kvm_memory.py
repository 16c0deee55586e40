"""Memory slots: reading, writing, read-only, dirty pages, removal; and coalesced writes behind them."""

from __future__ import annotations

import mmap

import pytest

from pyvmm.errors import KvmError
from pyvmm.kvm import constants as k
from pyvmm.kvm.exits import Hlt, Mmio, Pio
from tests.support.tinyvm import RAM, tiny_vm

pytestmark = pytest.mark.needs("kvm")

PAGE = 4096
# mov ax, 0xffff; mov ds, ax: ds:0x10 is gpa 0x100000, the first byte behind RAM
BEYOND = b"\xb8\xff\xff\x8e\xd8"


@pytest.fixture
def page():
    """A page of memory for one more slot."""
    memory = mmap.mmap(-1, PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    yield memory
    memory.close()


@pytest.mark.parametrize(
    ("gpa", "length", "offset", "says"),
    [
        (0x100001, PAGE, 0, "whole pages"),
        (0x100000, PAGE - 1, 0, "whole pages"),
        (0x100000, PAGE, 1, "whole pages"),
        (0x0FF000, PAGE, 0, "overlaps another slot"),
    ],
)
def test_what_kvm_refuses(gpa, length, offset, says):
    memory = mmap.mmap(-1, 2 * PAGE)
    with tiny_vm() as tiny, pytest.raises(KvmError, match=says):
        tiny.vm.set_user_memory_region(1, gpa, memoryview(memory)[offset : offset + length])
    memory.close()


def test_a_slot_can_be_added_moved_and_removed(page):
    # mov al, [0x10]; hlt
    with tiny_vm(BEYOND + b"\xa0\x10\x00\xf4") as tiny:
        page[0] = 0x42
        tiny.vm.set_user_memory_region(1, RAM, memoryview(page))
        assert isinstance(tiny.run(), Hlt)
        assert tiny.vcpu.get_regs().rax & 0xFF == 0x42
        tiny.vm.set_user_memory_region(1, RAM + PAGE, memoryview(page))
        tiny.load(BEYOND + b"\xa0\x10\x00\xf4")
        assert isinstance(tiny.run(), Mmio)
        tiny.finish()
        with pytest.raises(BufferError):
            page.close()
        tiny.vm.set_user_memory_region(1, RAM + PAGE, None)
        page.close()


def test_a_read_only_slot(page):
    # mov al, [0x10]; mov [0x10], ah; hlt
    with tiny_vm(BEYOND + b"\xa0\x10\x00\x88\x26\x10\x00\xf4") as tiny:
        if not tiny.vm.check_extension(k.KVM_CAP_READONLY_MEM):
            pytest.skip("this host's KVM lacks KVM_CAP_READONLY_MEM")
        page[0] = 0x42
        tiny.vm.set_user_memory_region(1, RAM, memoryview(page), k.KVM_MEM_READONLY)
        exit = tiny.run()
        assert isinstance(exit, Mmio)
        assert (exit.gpa, exit.is_write, exit.data) == (RAM, True, b"\xff")
        assert isinstance(tiny.run(), Hlt)
        assert tiny.vcpu.get_regs().rax & 0xFF == 0x42
        assert page[0] == 0x42
        tiny.vm.set_user_memory_region(1, RAM, None)


def pages(bitmap):
    return {8 * i + bit for i, byte in enumerate(bitmap) for bit in range(8) if byte >> bit & 1}


# mov [0x2000], al; mov [0x5000], al; out 0x80, al; mov [0x7000], al; hlt
STORES = b"\xa2\x00\x20\xa2\x00\x50\xe6\x80\xa2\x00\x70\xf4"


def test_dirty_log():
    with tiny_vm(STORES, flags=k.KVM_MEM_LOG_DIRTY_PAGES) as tiny:
        tiny.vm.dirty_log(0)
        assert isinstance(tiny.run(), Pio)
        bitmap = tiny.vm.dirty_log(0)
        assert len(bitmap) == RAM // PAGE // 8
        assert pages(bitmap) == {2, 5}
        assert isinstance(tiny.run(), Hlt)
        assert pages(tiny.vm.dirty_log(0)) == {7}
        assert pages(tiny.vm.dirty_log(0)) == set()


def test_dirty_log_cleared_by_hand():
    with tiny_vm(STORES) as tiny:
        if not tiny.vm.check_extension(k.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2):
            pytest.skip("this host's KVM lacks KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2")
        tiny.vm.enable_cap(k.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, k.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE)
        tiny.vm.set_user_memory_region(0, 0, memoryview(tiny.memory), k.KVM_MEM_LOG_DIRTY_PAGES)
        assert isinstance(tiny.run(), Pio)
        bitmap = tiny.vm.dirty_log(0)
        assert pages(bitmap) == pages(tiny.vm.dirty_log(0)) == {2, 5}
        only_2 = bytes([4]) + bytes(len(bitmap) - 1)
        tiny.vm.clear_dirty_log(0, only_2)
        assert pages(tiny.vm.dirty_log(0)) == {5}
        with pytest.raises(ValueError, match="256 pages"):
            tiny.vm.clear_dirty_log(0, bitmap[1:])


def test_no_dirty_log_where_none_is_kept():
    with tiny_vm() as tiny:
        with pytest.raises(KvmError, match=r"does not log dirty pages|ENOENT|No such file"):
            tiny.vm.dirty_log(0)
        with pytest.raises(ValueError, match="slot 3 has no memory"):
            tiny.vm.dirty_log(3)


def test_coalesced_mmio():
    # mov byte [0x10], 1; mov byte [0x11], 2; mov byte [0x20], 3; hlt
    code = BEYOND + b"\xc6\x06\x10\x00\x01\xc6\x06\x11\x00\x02\xc6\x06\x20\x00\x03\xf4"
    with tiny_vm(code) as tiny:
        if not tiny.vm.check_extension(k.KVM_CAP_COALESCED_MMIO):
            pytest.skip("this host's KVM lacks KVM_CAP_COALESCED_MMIO")
        tiny.vm.register_coalesced(RAM, 8)
        exit = tiny.run()
        assert isinstance(exit, Mmio)
        assert (exit.gpa, exit.data) == (RAM + 0x10, b"\3")
        assert tiny.vcpu.drain_coalesced() == [(RAM, b"\1", False), (RAM + 1, b"\2", False)]
        assert tiny.vcpu.drain_coalesced() == []
        assert isinstance(tiny.run(), Hlt)
        tiny.vm.unregister_coalesced(RAM, 8)
        tiny.load(code)
        assert isinstance(tiny.run(), Mmio)


def test_coalesced_pio_fills_up_and_then_exits():
    # out 0x80, al; jmp back
    with tiny_vm(b"\xe6\x80\xeb\xfc", rax=0x55) as tiny:
        if not tiny.vm.check_extension(k.KVM_CAP_COALESCED_PIO):
            pytest.skip("this host's KVM lacks KVM_CAP_COALESCED_PIO")
        tiny.vm.register_coalesced(0x80, 1, pio=True)
        for _ in range(3):
            exit = tiny.run()
            assert isinstance(exit, Pio)
            assert (exit.port, exit.data) == (0x80, b"\x55")
            drained = tiny.vcpu.drain_coalesced()
            assert set(drained) == {(0x80, b"\x55", True)}
            assert 100 < len(drained) < PAGE // 24
