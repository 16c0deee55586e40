"""A snapshot's folder: whole or not there, and judged before anything is done with it."""

from __future__ import annotations

import json
import os
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm import Disk
from pyvmm.backends.disk import open_disk
from pyvmm.backends.overlay import OverlayDisk, WrittenBefore
from pyvmm.config import VmConfig
from pyvmm.errors import LoadError, PyvmmError, UsageError
from pyvmm.hardware import Balloon, Net, Port, Rng, Share, Vsock
from pyvmm.memory import GuestMemory
from pyvmm.snapshot import file, memory
from pyvmm.snapshot.chain import DEEPEST, Layers, describe_base
from pyvmm.snapshot.configuration import make_config, save_config
from pyvmm.snapshot.disks import image_now, judge_disks
from pyvmm.snapshot.file import LARGEST, MAGIC, STATE, VERSION, Folder, Writer
from pyvmm.snapshot.inspect import inspect
from pyvmm.snapshot.restore import Restoring

MIB = 1 << 20
RANGES = [(0, 2 * MIB), (1 << 32, 6 * MIB)]


def text_of(state: object) -> bytes:
    return lined(json.dumps(state, separators=(",", ":")).encode())


def lined(text: bytes) -> bytes:
    return f"{MAGIC} {VERSION} {sha256(text).hexdigest()} {len(text)}\n".encode() + text


def made(path: Path, ram: GuestMemory, **more: object) -> dict[str, object]:
    """A snapshot of `ram` at `path`; its state."""
    with Writer(str(path)) as writer:
        state: dict[str, object] = {"memory": memory.save_memory(writer, ram), "base": None, **more}
        writer.commit(state)
    return state


@pytest.fixture
def ram() -> GuestMemory:
    ram = GuestMemory.allocate(RANGES)
    ram.write(0x3000, b"low")
    ram.write((1 << 32) + 5 * MIB - 2, b"high, and over the end of a page")
    return ram


# --- State ---------------------------------------------------------------------------------------------------------


def put(path: Path, data: bytes) -> Path:
    path.mkdir()
    (path / STATE).write_bytes(data)
    return path


GOOD = text_of({"a": 1})
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(plain, lambda one: st.lists(one) | st.dictionaries(st.text(), one))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is empty"),
        (b"\x7fELF and more", "is no snapshot's state at offset 0x0 .expected pyvmm-snapshot"),
        (GOOD[:20], "has a damaged first line"),
        (GOOD[:-3], "ends after"),
        (GOOD + b" ", "ends after"),
        (GOOD.replace(b'"a"', b'"b"'), "wrong checksum"),
        (GOOD.replace(b"pyvmm-snapshot 1", b"pyvmm-snapshot 2"), "of version 2, from a later pyvmm .expected up to 1"),
        (GOOD.replace(b"pyvmm-snapshot 1", b"pyvmm-snapshot 0"), "has a damaged first line"),
        (b"%s %d %s %d\n{}" % (MAGIC.encode(), VERSION, b"0" * 64, LARGEST + 1), "bytes of state .expected up to"),
        (text_of([1, 2]), "is no object"),
        *(
            (lined(text), "is no JSON")
            for text in (b"", b"{", b'{"a":}', b'{"a":NaN}', b"{}x", b"[" * 100_000, b"\xff")
        ),
    ],
)
def test_state_that_is_none_is_refused_with_its_reason(data: bytes, problem: str, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=problem):
        Folder(str(put(tmp_path / "s", data)))


@given(values)
def test_what_was_written_is_read(value: object) -> None:
    text = json.dumps(value, separators=(",", ":"))
    assert file.decode(text) == value
    assert file.checksum(text.encode()) == sha256(text.encode()).hexdigest()


def test_too_large_a_file_is_not_even_read(tmp_path: Path) -> None:
    path = put(tmp_path / "s", b"")
    os.truncate(path / STATE, LARGEST + 4096)
    with pytest.raises(LoadError, match="has 67112960 bytes"):
        Folder(str(path))


def test_too_much_state_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "LARGEST", 100)
    with pytest.raises(UsageError, match="bytes of state"), Writer(str(tmp_path / "s")) as writer:
        writer.commit({"a": "x" * 100})
    assert not (tmp_path / "s").exists()


def test_what_is_no_folder_of_a_snapshot_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_bytes(b"x")
    for name in ("file", "folder"):
        with pytest.raises(UsageError, match="snapshot .*"):
            Writer(str(tmp_path / name))
        with pytest.raises(LoadError, match="is no snapshot"):
            Folder(str(tmp_path / name))
    with pytest.raises(LoadError, match="is no snapshot"):
        Folder(str(tmp_path / "missing"))
    assert (tmp_path / "folder" / "mine").read_bytes() == b"x"


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with Writer(str(tmp_path / "s")) as writer:
        with pytest.raises(PyvmmError, match="being written by another"):
            Writer(str(tmp_path / "s"))
        writer.commit({})
    assert Folder(str(tmp_path / "s")).state == {}


def test_a_snapshot_that_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path, ram: GuestMemory) -> None:
    path = tmp_path / "s"
    made(path, ram, number=1)
    before = sorted(os.listdir(path))
    with pytest.raises(RuntimeError), Writer(str(path)) as writer:
        memory.save_memory(writer, ram)
        raise RuntimeError
    assert sorted(os.listdir(path)) == before
    assert Folder(str(path)).state["number"] == 1
    (path / "memory-0123abcd").write_bytes(b"left by a process that was killed")
    made(path, ram, number=2)
    assert Folder(str(path)).state["number"] == 2
    assert len(os.listdir(path)) == 2


def test_files_are_sealed(tmp_path: Path, ram: GuestMemory) -> None:
    made(tmp_path / "s", ram)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "s").iterdir()} == {0o444}


# --- Memory --------------------------------------------------------------------------------------------------------


def open_memory(path: Path) -> GuestMemory:
    with Folder(str(path)) as folder:
        layers = Layers(folder, RANGES)
        try:
            return layers.map()
        finally:
            layers.close()


def contents(ram: GuestMemory) -> list[bytes]:
    return [bytes(region.view) for region in ram.regions]


@pytest.mark.parametrize("backing", ["anonymous", "memfd"])
def test_memory_comes_back_and_takes_no_more_room_than_it_must(backing: str, tmp_path: Path) -> None:
    ram = GuestMemory.allocate(RANGES, backing)
    ram.write(0x3000, b"low")
    ram.write(0x9000, bytes(0x4000))  # touched, and zero all the same
    ram.write((1 << 32) + 5 * MIB - 2, b"over the end of a page")
    made(tmp_path / "s", ram)
    (path,) = (tmp_path / "s").glob("memory-*")
    assert path.stat().st_blocks * 512 <= 8 * 4096
    assert contents(open_memory(tmp_path / "s")) == contents(ram)


def test_a_clone_s_memory_is_its_own_and_can_be_saved_again(tmp_path: Path, ram: GuestMemory) -> None:
    made(tmp_path / "s", ram)
    one, other = open_memory(tmp_path / "s"), open_memory(tmp_path / "s")
    one.write(0x3000, b"LOW")
    one.discard((1 << 32) + 4 * MIB, 2 * MIB)
    assert other.read(0x3000, 3) == b"low"
    assert one.read((1 << 32) + 4 * MIB, 2 * MIB) == bytes(2 * MIB), "what was given back reads as the file has it"
    made(tmp_path / "t", one)
    assert contents(open_memory(tmp_path / "t")) == contents(one)
    assert contents(other) == contents(ram)


def test_memory_that_was_changed_is_refused(tmp_path: Path, ram: GuestMemory) -> None:
    made(tmp_path / "s", ram)
    (path,) = (tmp_path / "s").glob("memory-*")
    path.chmod(0o644)
    with path.open("r+b") as changed:
        changed.seek(0x3000)
        changed.write(b"LOW")
    with pytest.raises(LoadError, match="wrong checksum: it was changed at offset 0x0"):
        open_memory(tmp_path / "s")
    os.truncate(path, 4096)
    with pytest.raises(LoadError, match="has 4096 bytes"):
        open_memory(tmp_path / "s")
    path.unlink()
    with pytest.raises(LoadError, match="No such file"):
        open_memory(tmp_path / "s")


def test_a_copy_is_believed_when_all_of_it_is_right(tmp_path: Path, ram: GuestMemory) -> None:
    made(tmp_path / "s", ram)
    shutil.copytree(tmp_path / "s", tmp_path / "t")
    assert contents(open_memory(tmp_path / "t")) == contents(ram)
    (path,) = (tmp_path / "t").glob("memory-*")
    path.chmod(0o644)
    with path.open("r+b") as changed:
        changed.seek(7 * MIB)  # a chunk that was all zero
        changed.write(b"x")
    with pytest.raises(LoadError, match="wrong checksum"):
        open_memory(tmp_path / "t")


# --- On top of others ----------------------------------------------------------------------------------------------


def made_on(base: Path, path: Path, ram: GuestMemory, **more: object) -> int:
    """A snapshot of `ram` at `path`, based on that at `base`; how many bytes of memory it has."""
    with Folder(str(base)) as folder, Writer(str(path)) as writer:
        layers = Layers(folder, RANGES)
        saved = memory.save_memory(writer, ram, layers.map())
        layers.close()
        writer.commit({"memory": saved, "base": describe_base(folder), **more})
    runs: list[list[int]] = saved["runs"]
    return sum(last - first for first, last in runs)


@pytest.mark.parametrize("backing", ["anonymous", "memfd", "its base's"])
def test_only_what_has_changed_is_saved_and_all_comes_back(backing: str, tmp_path: Path, ram: GuestMemory) -> None:
    made(tmp_path / "s", ram)
    if backing == "its base's":
        now = open_memory(tmp_path / "s")
    else:
        now = GuestMemory.allocate(RANGES, backing)
        now.write(0x3000, b"low")
        now.write((1 << 32) + 5 * MIB - 2, b"high, and over the end of a page")
    high = (1 << 32) + 5 * MIB
    assert made_on(tmp_path / "s", tmp_path / "same", now) == 0
    assert contents(open_memory(tmp_path / "same")) == contents(ram)
    now.write(0x8000, b"anew")
    now.write(0x9000, bytes(0x1000))  # written to, and as it was
    now.write(high, bytes(0x1000))  # zero now, and was not
    assert made_on(tmp_path / "s", tmp_path / "t", now) == 2 * 4096
    assert contents(open_memory(tmp_path / "t")) == contents(now)
    third = open_memory(tmp_path / "t")
    third.discard(0, 0x9000)
    third.write(high - 4096, b"left")
    assert made_on(tmp_path / "t", tmp_path / "u", third) == 3 * 4096
    assert contents(open_memory(tmp_path / "u")) == contents(third)
    assert contents(open_memory(tmp_path / "t")) == contents(now)
    assert made_on(tmp_path / "u", tmp_path / "v", ram) == 3 * 4096
    assert contents(open_memory(tmp_path / "v")) == contents(ram)


def test_another_snapshot_in_the_base_s_place_is_not_taken_for_it(tmp_path: Path, ram: GuestMemory) -> None:
    made(tmp_path / "s", ram)
    made_on(tmp_path / "s", tmp_path / "t", ram)
    made(tmp_path / "s", ram, another=True)
    with pytest.raises(LoadError, match=f"t: its base {tmp_path}/s has changed since"):
        open_memory(tmp_path / "t")
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(LoadError, match="t: its base cannot be read: .*/s: is no snapshot"):
        open_memory(tmp_path / "t")


def test_a_base_whose_memory_was_changed_is_refused(tmp_path: Path, ram: GuestMemory) -> None:
    made(tmp_path / "s", ram)
    made_on(tmp_path / "s", tmp_path / "t", ram)
    (path,) = (tmp_path / "s").glob("memory-*")
    path.chmod(0o644)
    with path.open("r+b") as changed:
        changed.write(b"other")
    with pytest.raises(LoadError, match=r"s/memory-\w+: has a wrong checksum"):
        open_memory(tmp_path / "t")


def test_a_chain_has_an_end(tmp_path: Path, ram: GuestMemory) -> None:
    made(tmp_path / "0", ram)
    for number in range(1, DEEPEST):
        made_on(tmp_path / str(number - 1), tmp_path / str(number), ram)
    made_on(tmp_path / str(DEEPEST - 1), tmp_path / "one more", ram)
    with pytest.raises(LoadError, match="based on more than 15 others"):
        open_memory(tmp_path / "one more")


@pytest.mark.parametrize(
    "runs", [None, 7, [[0]], [[0, 4095]], [[4096, 0]], [[0, 8192], [4096, 12288]], [[0, 64 * MIB]], [["a", "b"]]]
)
def test_pages_that_cannot_be_are_refused(runs: object, tmp_path: Path, ram: GuestMemory) -> None:
    made(tmp_path / "s", ram)
    with Folder(str(tmp_path / "s")) as folder, Writer(str(tmp_path / "t")) as writer:
        saved = memory.save_memory(writer, ram)
        writer.commit({"memory": {**saved, "runs": runs}, "base": describe_base(folder)})
    with pytest.raises(LoadError, match="which pages"):
        open_memory(tmp_path / "t")


@pytest.mark.parametrize("base", [7, {}, {"path": "s"}, {"path": "s", "checksum": 1}])
def test_a_base_that_is_none_is_refused(base: object, tmp_path: Path, ram: GuestMemory) -> None:
    with Writer(str(tmp_path / "t")) as writer:
        saved = memory.save_memory(writer, ram, GuestMemory.allocate(RANGES))
        writer.commit({"memory": saved, "base": base})
    with pytest.raises(LoadError, match="base"):
        open_memory(tmp_path / "t")


# --- Configuration and disks ---------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(b"sector".ljust(512, b"-") * 2048)
    return path


def test_a_configuration_comes_back_but_for_what_was_the_first_vm_s_own(image: Path) -> None:
    config = VmConfig(
        "kernel",
        mem="64M",
        cpus=2,
        append="quiet",
        disks=[Disk(image, overlay=True, serial="s")],
        net=Net.user(["8080:80"], mac=b"\2\0\0\0\0\1"),
        agent=True,
        ports=[Port("org.test")],
        rng=Rng(100),
        shares=[Share("/", "root", readonly=True)],
        vsock=Vsock("/run/v", cid=7),
        balloon=Balloon(4096),
        name="first",
        timeout=5,
    )
    again = make_config(json.loads(json.dumps(save_config(config))), "s")
    assert (again.name, again.timeout) == ("", None)
    again.name, again.timeout = "first", 5.0
    assert save_config(again) == save_config(config)


def test_what_the_guest_has_in_memory_cannot_be_another(image: Path) -> None:
    saved = json.loads(json.dumps(save_config(VmConfig("kernel", disks=[Disk(image, overlay=True)]))))
    assert make_config(saved, "s", name="clone", timeout="5s").name == "clone"
    with pytest.raises(UsageError, match="mem stays|mem is what"):
        make_config(saved, "s", mem="1G")
    with pytest.raises(UsageError, match="0 disks: the snapshot's VM has 1"):
        make_config(saved, "s", disks=[])
    with pytest.raises(UsageError, match="overlay"):
        make_config(saved, "s", disks=[Disk(image)])
    with pytest.raises(LoadError, match="no good configuration"):
        make_config({**saved, "cpus": "many"}, "s")
    with pytest.raises(LoadError, match="another pyvmm's configuration"):
        make_config({"kernel": "k"}, "s")


def test_a_disk_that_has_changed_is_refused(image: Path) -> None:
    known = [{"image": image_now(str(image)), "overlay": None}]
    disks = [Disk(image)]
    judge_disks("s", disks, known)
    status = image.stat()
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(LoadError, match="has changed since: another time"):
        judge_disks("s", disks, known)
    with image.open("ab") as longer:
        longer.write(bytes(512))
    with pytest.raises(LoadError, match="has changed since: another size"):
        judge_disks("s", disks, known)
    image.unlink()
    with pytest.raises(LoadError, match="No such file"):
        judge_disks("s", disks, known)


def test_an_overlay_goes_on_from_what_was_written_before(image: Path, tmp_path: Path) -> None:
    def put(disk: OverlayDisk, data: bytes, offset: int) -> None:
        disk.writev([memoryview(bytearray(data))], offset)

    def get(disk: OverlayDisk) -> bytes:
        data = bytearray(disk.size)
        disk.readv([memoryview(data)], 0)
        return bytes(data)

    first = open_disk(str(image), overlay=True)
    assert isinstance(first, OverlayDisk)
    put(first, b"one".ljust(512), 512)
    first.resize(2 * MIB)
    put(first, b"far".ljust(512), MIB + 8192)
    disks = [first]
    for number in range(2):
        fd = os.open(tmp_path / f"overlay{number}", os.O_RDWR | os.O_CREAT)
        runs = disks[-1].copy_to(fd)
        clone = open_disk(str(image), overlay=True)
        assert isinstance(clone, OverlayDisk)
        clone.begin_with(WrittenBefore(fd, disks[-1].size, runs, "disk"))
        assert get(clone) == get(disks[-1])
        put(clone, b"%d" % number * 512, 8192 * (number + 3))
        disks.append(clone)
    assert len(set(map(get, disks))) == 3
    cannot_be: list[Any] = [[[1, 2]], [[0, 4096], [0, 4096]], [[4096, 1 << 40]], [["a", 1]]]
    for bad in cannot_be:
        with pytest.raises((ValueError, TypeError)):
            WrittenBefore(os.dup(0), MIB, bad, "disk")
    for disk in disks:
        disk.close()


# --- The whole -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [{}, {"config": 1}, {"vcpus": [], "config": {}}])
def test_state_without_its_parts_is_refused(parts: dict[str, object], tmp_path: Path, ram: GuestMemory) -> None:
    made(tmp_path / "s", ram, **parts)
    with pytest.raises(LoadError, match="parts|configuration"):
        Restoring(tmp_path / "s")
    with pytest.raises(LoadError):
        inspect(tmp_path / "s")
