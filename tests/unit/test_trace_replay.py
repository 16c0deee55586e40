"""Recorded devices played back: no difference in the model as it is, and each mutant's difference where it begins."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from pyvmm.errors import LoadError, UsageError
from pyvmm.trace.devices.recorded import Recorded, changes
from pyvmm.trace.devices.replay import replay
from pyvmm.trace.reader import read
from tests.support.cli import environment, pyvmm
from tests.support.recordings import MAKERS, nothing

COUNT = 20


@pytest.fixture(scope="module", params=MAKERS)
def recording(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("recording") / "device.jsonl"
    recorded = MAKERS[request.param][1]()
    recorded.save(str(path))
    recorded.close()
    return path


def test_a_device_as_it_is_does_what_it_did(recording):
    result = replay(recording)
    assert result.same, result
    assert result.accesses == sum(record["kind"] == "exit" for record in read(recording).records()) > 100


def mutants(name: str, count: int, seed: int) -> dict[str, list[tuple[int, str, str]]]:
    command = [sys.executable, "-m", "tests.support.mutants", name, "--count", str(count), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[tuple[int, str, str]]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", MAKERS)
def test_a_tenth_of_the_mutants_is_found(name):
    found = mutants(name, COUNT // 10, 1)["found"]
    assert len(found) == COUNT // 10
    assert all("differs at access" in said or said == "it does not end" for _, _, said in found)


@pytest.mark.soak
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", MAKERS)
def test_twenty_mutants_are_found_at_the_first_access_that_differs(name, capsys):
    """Those that survive are shown: the recording comes to their line, and nothing can be told apart."""
    judged = mutants(name, COUNT, 1)
    with capsys.disabled():
        for line, what, _ in judged["survived"]:
            print(f"\n{name}: line {line}, {what}: no difference", end="")
    assert len(judged["found"]) == COUNT
    assert len(judged["survived"]) <= 1.5 * COUNT, "the recording notices too little"


def changed(module: str, old: str, new: str):
    """A `load` with another version of `module`."""
    original = import_module(module)
    source = Path(str(original.__file__)).read_text()
    assert source.count(old) == 1
    other = ModuleType(module)
    exec(compile(source.replace(old, new), "changed", "exec"), other.__dict__)
    return lambda name: other if name == module else import_module(name)


@pytest.fixture
def port92(tmp_path):
    """Reads, sets A20, clears it, resets."""
    with Recorded("port92", {}, {"reset": nothing}) as recorded:
        device = recorded.devices["port92"]
        device.read(0, 1)
        for value in (0, 2, 1):
            device.write(0, 1, value)
            device.read(0, 1)
        recorded.save(str(tmp_path / "port92.jsonl"))
    return tmp_path / "port92.jsonl"


@pytest.mark.parametrize(
    ("old", "new", "access", "expected", "got"),
    [
        ("self._value = value & A20", "self._value = value", 7, "0x0", "0x1"),
        ("self._value = value & A20", "self._value = A20", 3, "0x0", "0x2"),
        ("            self._reset_machine()", "            pass", 6, "reset()", "nothing more"),
        ("if value & FAST_RESET:", "if True:", 2, "that the access is over", "reset()"),
        ('self._value = REGISTERS["PORTA"].reset', "self._value = 7", 1, "0x2", "0x7"),
        ("if value & FAST_RESET:", "if value // 0:", 2, "no exception", "ZeroDivisionError"),
    ],
)
def test_a_difference_is_told_where_it_begins(port92, old, new, access, expected, got):
    result = replay(port92, load=changed("pyvmm.devices.port92", old, new))
    assert (result.same, result.accesses) == (False, access)
    assert expected in result.expected and got in result.got
    assert str(result).startswith(f"port92: differs at access {access}, a ")


def test_what_virtio_writes_to_memory_and_asks_of_its_back_end_is_compared(tmp_path):
    recorded = MAKERS["virtio-block"][1]()
    recorded.save(str(tmp_path / "blk"))
    recorded.close()
    assert replay(tmp_path / "blk").same
    for old, new, expected, got in (
        ("chain.writable[-1][-1] = status", "chain.writable[-1][-1] = 77", "00 in 1 bytes of memory at 0x", "4d"),
        ("            disk.flush()", "            pass", "02 in 1 bytes of memory at 0x", "03"),
        ("if kind == BLK_T_FLUSH or", "if kind != BLK_T_FLUSH or", "bytes of memory at 0x", "disk.flush()"),
        ("disk.readv(request.data, ", "disk.readv(request.data, 512 + ", "disk.readv(", "disk.readv("),
        (
            "disk.write_zeroes(offset, length, unmap)",
            "disk.discard(offset, length)",
            "disk.write_zeroes(",
            "disk.discard(",
        ),
    ):
        result = replay(tmp_path / "blk", load=changed("pyvmm.virtio.block", old, new))
        assert not result.same and expected in result.expected and got in result.got, result


def test_the_command_tells_what_it_finds(port92, tmp_path):
    done = pyvmm("trace", "replay", port92)
    assert (done.returncode, done.stdout) == (0, b"port92: 7 accesses, no difference\n")
    port92.write_text(
        port92.read_text()
        .replace('"data":"02","words"', '"data":"03","words"')
        .replace('"data":"02"', '"data":"03"', 1)
    )
    done = pyvmm("trace", "replay", port92)
    assert done.returncode == 1
    assert done.stdout == (
        b"port92: differs at access 1, a read at port92 0x0, 1 bytes\n  recorded: 0x3\n  now:      0x2\n"
    )


def test_what_cannot_be_played_is_told(port92, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(port92.read_text().replace('"model":"port92"', '"model":"toaster"'))
    with pytest.raises(UsageError, match="there is no device model 'toaster'"):
        replay(other)
    run = Path(__file__).with_name("sample_trace.jsonl")
    with pytest.raises(UsageError, match="blk0: its accesses alone say too little"):
        replay(run, "blk0")
    restored = tmp_path / "restored.jsonl"
    restored.write_text(run.read_text().replace('"cpus":2', '"cpus":2,"restored":true'))
    with pytest.raises(UsageError, match="was restored"):
        replay(restored, "serial")
    lost = tmp_path / "lost.jsonl"
    lost.write_text(run.read_text() + '{"kind":"lost","t":9999999999,"count":3}\n')
    with pytest.raises(UsageError, match="3 records were lost"):
        replay(lost, "serial")


def test_a_recording_that_makes_no_sense_is_told_in_a_line(port92):
    text = port92.read_text()
    for old, new, said in (
        ('"mem":0', '"mem":"much"', "has a header that cannot be played"),
        ('"mem":0', f'"mem":{1 << 50}', "has a header that cannot be played"),
        ('"options":{', '"options":[],"x":{', "has a header that cannot be played"),
        ('"size":1', '"size":0', "whose 'size' cannot be played"),
        ('"data":"02"', '"data":"2"', "whose 'data' cannot be played"),
        ('"at":0', '"at":null', "whose 'at' cannot be played"),
        ('{"kind":"exit"', '{"kind":', "is no JSON"),
    ):
        assert old in text, old
        port92.write_text(text.replace(old, new))
        with pytest.raises(LoadError, match=said):
            replay(port92)


def test_a_run_that_makes_no_sense_is_told_in_a_line(tmp_path):
    good = access(1, 5, 0x60, False)
    for record, said in (
        ({"kind": "exit", "device": "serial"}, "'t' cannot be played"),
        (good | {"vcpu": "0"}, "'vcpu' cannot be played"),
        (good | {"data": "6"}, "'data' cannot be played"),
        (said_of := {"kind": "outside", "device": "serial", "t": 1}, "'name' cannot be played"),
        (said_of | {"name": "output", "data": 5}, "'data' cannot be played"),
    ):
        with pytest.raises(LoadError, match=said):
            replay(run_of(tmp_path, record), "serial")


def run_of(tmp_path: Path, *records: dict[str, object]) -> Path:
    """A run's trace with a serial port and these records."""
    path = tmp_path / "run.jsonl"
    devices = [{"name": "serial", "space": "pio", "base": 0x3F8, "length": 8, "model": "serial"}]
    header = {"kind": "trace", "format": 1, "cpus": 1, "mem": 1 << 27, "devices": devices}
    path.write_text("".join(f"{json.dumps(record)}\n" for record in (header, *records)))
    return path


def access(t: int, offset: int, value: int, write: bool, **other: object) -> dict[str, object]:
    record = {"kind": "exit", "t": t, "vcpu": 0, "reason": "IO", "run": 1, "handle": 10, "by": "python"}
    place = {"space": "pio", "at": 0x3F8 + offset, "size": 1, "count": 1, "write": write, "data": f"{value:02x}"}
    return {**record, **place, "device": "serial", **other}


def said(t: int, name: str, **other: object) -> dict[str, object]:
    return {"kind": "outside", "t": t, "device": "serial", "name": name, **other}


def test_in_a_run_posted_output_may_come_later_but_not_never(tmp_path):
    writes = [access(10 * number, 0, 0x61 + number, True, by="c") for number in range(3)]
    late = said(100, "output", data="616263")
    assert replay(run_of(tmp_path, *writes, late), "serial").same
    missing = replay(run_of(tmp_path, *writes), "serial")
    assert not missing.same and missing.accesses == 1
    other = replay(run_of(tmp_path, *writes, said(100, "output", data="616264")), "serial")
    assert (other.accesses, other.expected, other.got) == (3, "output b'd'", "b'c'")
    more = replay(
        run_of(tmp_path, *writes, said(100, "output", data="61626364"), access(200, 5, 0x60, False)), "serial"
    )
    assert (more.expected, more.got) == ("output b'd'", "nothing yet")


def test_in_a_run_input_and_an_access_at_the_same_time_may_be_either_way_round(tmp_path):
    ready = [access(1, 3, 3, True), access(2, 4, 0x0B, True), access(3, 1, 1, True), access(4, 5, 0x60, False)]
    ready += [{"kind": "interrupt", "t": 104, "device": "serial", "gsi": 4, "level": 1}]
    host = said(105, "receive", data="41", value=1)
    for value in (0x60, 0x61):
        path = run_of(tmp_path, *ready, access(100, 5, value, False), host)
        assert replay(path, "serial").same, hex(value)
    later = run_of(tmp_path, *ready, access(90, 5, 0x61, False), host | {"t": 200})
    assert replay(later, "serial").got == "0x60"
    slow = [access(90, 5, 0x61, False), access(110, 5, 0x61, False), host | {"t": 200, "handle": 110}]
    assert replay(run_of(tmp_path, *ready, *slow), "serial").same  # noted late, but it began at 90
    slow[0]["data"] = "63"
    assert replay(run_of(tmp_path, *ready, *slow), "serial").accesses == 5


def test_in_a_run_the_cause_of_a_difference_may_lie_some_accesses_back(tmp_path):
    """A guest that polls eight times while there is input has it: whether the first of them was before or after."""
    polls = [access(100 * number, 5, 0x60 if number < 8 else 0x61, False) for number in range(1, 9)]
    path = run_of(tmp_path, polls[0], said(105, "receive", data="41", value=1), *polls[1:])
    assert replay(path, "serial").same
    apart = run_of(tmp_path, polls[0], said(115, "receive", data="41", value=1), *polls[1:])
    assert (replay(apart, "serial").accesses, replay(apart, "serial").got) == (8, "0x60")


def test_what_has_changed_is_found_byte_by_byte():
    before = bytes(10_000)
    after = bytearray(before)
    after[5], after[4094:4098], after[9999] = 1, b"abcd", 2
    assert changes(before, bytes(after)) == [(5, b"\x01"), (4094, b"ab"), (4096, b"cd"), (9999, b"\x02")]
    assert changes(before, before) == []
