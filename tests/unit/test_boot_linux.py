"""vmlinux by the Linux boot protocol: the state at the entry, the zero page, the initrd's place."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pyvmm.boot import load
from pyvmm.cli.configuration import make_config
from pyvmm.cli.options import parse
from pyvmm.cli.runoptions import RUN
from pyvmm.errors import LoadError, UsageError
from pyvmm.vm import VM
from tests.support.boot import MIB, allocate, load_bytes, text, untouched
from tests.support.bzimagebuild import CODE, bzimage, pack, vmlinux
from tests.support.elfbuild import PT_NOTE, Part, elf, note, pvh_note

GIB = 1 << 30


def test_64_bit_state(tmp_path: Path) -> None:
    loaded, memory = load_bytes(tmp_path, vmlinux())
    state = loaded.state
    assert (loaded.format, state.mode, loaded.entry, state.rip) == ("linux", "long", 2 * MIB, 2 * MIB)
    assert (state.cs.selector, state.cs.l, state.cs.db) == (0x10, 1, 0)
    for name in ("ds", "es", "ss"):
        assert getattr(state, name).selector == 0x18
    assert state.rflags & 1 << 9 == 0
    assert state.cr0 & (1 << 31 | 1) == 1 << 31 | 1
    assert memory.read(state.rsi + 0x202, 4) == b"HdrS"
    assert memory.read(2 * MIB, len(CODE)) == CODE
    assert untouched(memory, loaded)


def test_32_bit_state(tmp_path: Path) -> None:
    loaded, memory = load_bytes(tmp_path, vmlinux(bits=32))
    state = loaded.state
    assert (loaded.format, state.mode, loaded.entry) == ("linux", "protected", 2 * MIB)
    assert state.cr0 & (1 << 31 | 1) == 1
    assert (state.cs.selector, state.cs.base, state.cs.limit, state.cs.db) == (0x10, 0, 0xFFFFFFFF, 1)
    assert (state.rbp, state.rdi, state.rbx) == (0, 0, 0)
    assert memory.read(state.rsi + 0x202, 4) == b"HdrS"


def test_the_first_page_tables_map_what_the_kernel_looks_at(tmp_path: Path) -> None:
    """The kernel, the zero page and the command line, each onto itself."""
    loaded, memory = load_bytes(tmp_path, vmlinux())

    def mapped(gva: int) -> int:
        table = loaded.state.cr3
        for shift in (39, 30, 21):
            entry = memory.read_u64(table + (gva >> shift & 511) * 8)
            assert entry & 1
            if entry & 1 << 7:
                return (entry & ~0x1FFFFF) + gva % (1 << 21)
            table = entry & ~0xFFF
        raise AssertionError("a 4 KiB page")

    for gpa in (loaded.entry, loaded.state.rsi, memory.read_u32(loaded.state.rsi + 0x228)):
        assert mapped(gpa) == gpa


def test_zero_page(tmp_path: Path) -> None:
    loaded, memory = load_bytes(tmp_path, vmlinux(), allocate(5 * GIB), initrd=b"i" * 5000, append="quiet")
    page = memory.read(loaded.state.rsi, 4096)

    def field(at: int, format: str) -> int:
        return struct.unpack_from("<" + format, page, at)[0]

    assert page[:0x70].strip(b"\0") == b""  # no screen
    assert memory.read(field(0x70, "Q"), 8) == b"RSD PTR "
    assert field(0x1EF, "B") == 0
    assert field(0x1FE, "H") == 0xAA55
    assert field(0x206, "H") >= 0x20C
    assert field(0x210, "B") == 0xFF
    assert field(0x211, "B") == 1
    assert text(memory, field(0x228, "I")) == loaded.command_line
    assert memory.read(field(0x218, "I"), field(0x21C, "I")) == b"i" * 5000
    assert field(0xC0, "Q") == field(0xC8, "I") == 0  # nothing lies above 4 GiB
    assert field(0x250, "Q") == 0
    entries = field(0x1E8, "B")
    assert [struct.unpack_from("<QQI", page, 0x2D0 + 20 * i) for i in range(entries)] == list(loaded.memory_map)
    assert page[0x2D0 + 20 * entries :].strip(b"\0") == b""


def test_no_initrd(tmp_path: Path) -> None:
    loaded, memory = load_bytes(tmp_path, vmlinux())
    assert memory.read(loaded.state.rsi + 0x218, 8) == bytes(8)


@pytest.mark.parametrize(
    ("kernel", "size", "end"),
    [
        (vmlinux(), 16 * MIB, 16 * MIB),
        (vmlinux(), 4 * GIB, 2 * GIB),
        (vmlinux(bits=32), 4 * GIB, 0x38000000),
        (bzimage(), 4 * GIB, 2 * GIB),
        (bzimage(version=0x202), 4 * GIB, 0x38000000),
    ],
)
def test_initrd_lies_as_high_as_the_kernel_reaches(tmp_path: Path, kernel: bytes, size: int, end: int) -> None:
    loaded, memory = load_bytes(tmp_path, kernel, allocate(size), initrd=b"i" * 5000)
    gpa = memory.read_u32(loaded.state.rsi + 0x218)
    assert gpa == end - 8192
    assert memory.read(gpa, 5000) == b"i" * 5000


def test_initrd_without_room(tmp_path: Path) -> None:
    with pytest.raises(
        LoadError, match=r"initrd: .* no room in RAM beside the kernel; give it more with --mem"
    ) as caught:
        load_bytes(tmp_path, vmlinux(), initrd=bytes(13 * MIB))
    assert caught.value.exit_status == 127


def test_initrd_that_fits_only_where_the_kernel_does_not_reach(tmp_path: Path) -> None:
    kernel = bzimage(version=0x203, changed={(0x22C, "<I"): 8 * MIB - 1})
    with pytest.raises(LoadError, match="no room in RAM below 0x800000, beyond which this kernel takes no initrd"):
        load_bytes(tmp_path, kernel, initrd=bytes(7 * MIB))
    loaded, memory = load_bytes(tmp_path, kernel, initrd=bytes(4 * MIB))
    assert memory.read_u32(loaded.state.rsi + 0x218) == 4 * MIB


@pytest.mark.parametrize("gpa", [0x1000, 0x10000, 0x20000])
def test_kernel_on_what_the_protocol_needs(tmp_path: Path, gpa: int) -> None:
    words = r"segment 0 .* overlaps (boot page tables|Linux boot_params|command line)"
    with pytest.raises(LoadError, match=words) as caught:
        load_bytes(tmp_path, vmlinux(gpa))
    assert caught.value.offset == 64


def test_ram_too_small(tmp_path: Path) -> None:
    """What is named is enough for all of the kernel, not for the first segment that has no room."""
    with pytest.raises(LoadError, match=r"segment 1 .* does not lie in RAM.*--mem 22M"):
        load_bytes(tmp_path, vmlinux(20 * MIB))
    load_bytes(tmp_path, vmlinux(20 * MIB), allocate(22 * MIB))


def test_entry_outside_the_kernel(tmp_path: Path) -> None:
    kernel = elf([Part(MIB, CODE), Part(0, note(b"Linux\0", 0x100, b""), type=PT_NOTE)], 8 * MIB)
    with pytest.raises(LoadError, match="e_entry 0x800000 is in no segment"):
        load_bytes(tmp_path, kernel)


def test_old_kernels_without_notes_on_request(tmp_path: Path) -> None:
    kernel = vmlinux(notes=pvh_note(2 * MIB))
    assert load_bytes(tmp_path, kernel)[0].format == "pvh"
    loaded, _ = load_bytes(tmp_path, kernel, kernel_format="linux")
    assert (loaded.format, loaded.state.mode) == ("linux", "long")


@pytest.mark.parametrize("entry", ["bzimage", "payload"])
def test_kernel_entry_is_for_bzimages(tmp_path: Path, entry: str) -> None:
    with pytest.raises(UsageError, match=r"--kernel-entry is for Linux bzImages; .*kernel is loaded as Linux kernel"):
        load_bytes(tmp_path, vmlinux(), kernel_entry=entry)


def test_load_addr_is_not(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--load-addr is for flat binaries"):
        load_bytes(tmp_path, vmlinux(), load_addr=MIB)


@pytest.mark.parametrize(("module", "helps"), [("pvm", True), ("intel", False), ("amd", False), ("", False)])
def test_the_host_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, helps: bool) -> None:
    """A VM asks its host for the words of the command line, and whether a kernel is better unpacked here."""
    monkeypatch.setattr("pyvmm.kvm.host.backing_module", lambda view: module)
    path = tmp_path / "bzImage"
    path.write_bytes(bzimage(payload=pack(vmlinux(), "gzip")))
    for words, said in (([], helps), (["--no-host-quirks"], False)):
        vm = VM(config=make_config(parse(RUN, [str(path), "--append", "quiet", *words])))
        try:
            loaded = vm.load()
        finally:
            vm.close()
        assert ("clearcpuid=xsave," in (loaded.command_line or "")) is said
        assert loaded.entry == (2 * MIB if helps else 2 * MIB + 0x200)


def test_kernel_entry_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(bzimage(payload=pack(vmlinux(), "gzip")))
    for entry, at in (("bzimage", 2 * MIB + 0x200), ("payload", 2 * MIB)):
        config = make_config(parse(RUN, [str(path), "--kernel-entry", entry]))
        assert load(config, allocate(config.mem)).entry == at
