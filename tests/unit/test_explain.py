"""Exits in words: the instruction, the register, its bits, the section; what is folded, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Lock
from types import SimpleNamespace

import pytest

from pyvmm import layout
from pyvmm.cli.options import parse
from pyvmm.cli.runoptions import RUN
from pyvmm.cli.trace import main
from pyvmm.debug import disasm
from pyvmm.errors import MissingExtraError, UsageError
from pyvmm.kvm.exits import Exit, InternalError, Interrupted, Mmio, Pio
from pyvmm.kvm.seldom import Hlt, Rdmsr, Shutdown
from pyvmm.machine import Machine
from pyvmm.trace.explain import EXITS, Folded, Wanted, Words, kind_of
from pyvmm.trace.narrator import Narrator
from pyvmm.trace.recorder import LINES
from tests.support.fakevcpu import FakeVcpu
from tests.support.fakevcpu import machine as fake

LSR = {
    "kind": "exit",
    "vcpu": 1,
    "reason": "IO",
    "rip": 0x1000,
    "space": "pio",
    "at": 0x3FD,
    "size": 1,
    "count": 1,
    "write": False,
    "data": "60",
    "device": "serial",
    "register": "LSR",
    "words": "LSR 0x60: THRE TEMT",
    "spec": "PC16550D 8.4",
}


def test_a_read_says_who_where_what_and_why():
    words = Words(lambda address: "poll+0x4/0x8" if address == 0x1000 else "")
    assert words.line(LSR, "`in al, dx`") == (
        "vCPU 1 at 0x1000 (poll+0x4/0x8): `in al, dx` reads serial's LSR 0x60: THRE TEMT (PC16550D 8.4)"
    )


def test_a_write_says_what_the_device_makes_of_it():
    record = LSR | {"write": True, "register": "THR", "words": "THR 0x48 'H'", "spec": "PC16550D 8.0", "rip": 0}
    assert Words().line(record) == "vCPU 1: writes serial's THR 0x48 'H'; the character goes out (PC16550D 8.0)"


def test_an_access_of_no_register_says_where_it_was():
    nobody = {key: LSR[key] for key in ("kind", "vcpu", "reason", "space", "write")} | {"at": 0x99, "data": "ff"}
    assert Words().line(nobody | {"words": "port 0x99 0xff: nobody answers"}) == (
        "vCPU 1: reads port 0x99 0xff: nobody answers"
    )
    own = nobody | {"device": "mine", "words": "+0x1 0xff"}
    assert Words().line(own) == "vCPU 1: reads mine's port 0x99, +0x1 0xff"


@pytest.mark.parametrize("reason", EXITS)
def test_other_exits_have_words_and_a_section(reason):
    line = Words().line({"kind": "exit", "vcpu": 0, "reason": reason, "rip": 0x10, "details": "so"})
    what, section = EXITS[reason]
    assert line == f"vCPU 0 at 0x10: {what}: so ({section})"


def test_an_exit_that_nobody_has_words_for_is_named():
    line = Words().line({"kind": "exit", "vcpu": 0, "reason": "XEN"})
    assert line == "vCPU 0: left KVM for XEN (KVM API, 5, KVM_EXIT_XEN)"


def test_what_is_no_exit_is_told_in_words_too():
    queue = {"kind": "queue", "device": "blk0", "queue": 0, "count": 2, "depth": 2}
    lines = [Words().line({**queue, "event": event}) for event in ("notify", "take", "complete", "interrupt", "?")]
    assert lines[1] == "blk0, queue 0: the device takes 2 chains from the available ring (virtio 1.3, 2.7.6)"
    assert all(lines[:4]) and lines[4] == ""
    interrupt = {"kind": "interrupt", "device": "serial", "gsi": 4, "level": 1}
    assert Words().line(interrupt) == "serial: raises its interrupt line, GSI or vector 4"
    assert Words().line({**interrupt, "level": "pulse"}) == "serial: interrupts once, GSI or vector 4"
    assert Words().line({"kind": "end", "reason": "power-off", "status": 0}).endswith("power-off, status 0")
    assert Words().line({"kind": "statistics", "counters": {}}) == ""


@pytest.mark.parametrize(
    "broken", [{}, {"kind": 5}, {"kind": "exit"}, {"kind": "exit", "rip": "x", "space": [], "words": 7}]
)
def test_a_record_that_is_none_raises_nothing(broken):
    assert isinstance(Words().line(broken), str)


def test_equal_lines_are_folded():
    said = []
    folded = Folded(said.append)
    for line in ("a", "a", "a", "b", "a"):
        folded.add(line)
    assert said == ["a", "  the same again, x 2", "b", "a"]
    folded.flush()
    folded.flush()
    assert len(said) == 4


def test_the_option_takes_names_or_nothing():
    assert parse(RUN, ["--explain", "kernel"]).values == {"explain": True}
    assert parse(RUN, ["--explain=serial,virtio-blk"]).values == {"explain": ["serial", "virtio-blk"]}


def test_devices_are_chosen_by_name_and_by_kind():
    wanted = Wanted(["serial", "virtio-blk", "other"])
    hlt = {"kind": "exit", "reason": "HLT"}
    assert wanted(LSR) and wanted({**LSR, "device": "blk7"}) and wanted(hlt)
    assert not wanted({**LSR, "device": "rtc"}) and not wanted({"kind": "lifecycle"})
    assert Wanted(["unclaimed"])({key: value for key, value in LSR.items() if key != "device"})
    assert not Wanted(["serial"])(hlt)
    assert [kind_of(name) for name in ("blk0", "net12", "serial", "blk", "")] == [
        "virtio-blk",
        "virtio-net",
        "",
        "",
        "",
    ]
    wanted.check({"serial", "blk0"})
    with pytest.raises(UsageError, match=r"'virtio-blk' \(there are other, serial, unclaimed\)"):
        wanted.check({"serial"})


# --- A machine that goes on -------------------------------------------------------------------------------------------


class Told:
    """A narrator of a machine without KVM, whose vCPU stands where the test puts it; `lines` is what it said."""

    def __init__(self, names=()):
        self.lines = []
        self.vcpu, self.memory = fake()
        self.machine = Machine([(0, 2 << 20)], lambda *_: None, lambda _: None, lambda _: None)
        self.narrator = Narrator(self.lines.append, names)
        self.narrator.vm = SimpleNamespace(
            machine=self.machine, memory=self.memory, vcpus=[self.vcpu], symbol=lambda address: ""
        )
        self.narrator.on_lifecycle("running")

    def exits(self, exit: Exit, code: str = "", done: bool = False) -> str:
        """The vCPU comes out with `exit` on the instruction `code`, or, if that is `done`, behind it."""
        at = 0x9000
        self.memory.write(at, bytes.fromhex(code) + b"\x90" * 16)
        self.vcpu.state.rip = at + len(bytes.fromhex(code)) * done
        self.narrator.on_exit(0, exit)
        return self.lines[-1].partition(": ")[2]


@pytest.fixture
def told():
    return Told()


def test_the_instruction_is_the_one_that_was_read_or_done(told):
    read = Pio(0x3FD, 1, 1, False, b"\x60")
    assert told.exits(read, "ec").startswith("`in al, dx` reads serial's LSR 0x60: THRE TEMT (")
    write = Pio(0x3F8, 1, 1, True, b"A")
    for done in (False, True):
        assert told.exits(write, "ee", done).startswith("`out dx, al` writes serial's THR 0x41 'A'")
        assert told.lines[-1].startswith("vCPU 0 at 0x9000: ")
    store = Mmio(0xD0000000, 4, True, b"\1\0\0\0")
    assert told.exits(store, "41 89 07", done=True).startswith("`mov dword ptr [r15], eax` writes address 0xd0000000")


def test_the_bank_is_the_one_before_the_access(told):
    told.exits(Pio(0x3FB, 1, 1, True, b"\x80"), "ee")
    assert "THR" not in told.exits(Pio(0x3F8, 1, 1, True, b"\1"), "ee")
    assert "DLL" in told.lines[-1]


def test_an_instruction_that_is_not_there_is_said_so(told):
    told.vcpu.state.rip = 0x7FFF_FFFF_F000
    told.narrator.on_exit(0, Pio(0x3F8, 1, 1, True, b"A"))
    assert "(an instruction that cannot be read) writes serial's THR" in told.lines[-1]


def test_a_vcpu_that_cannot_be_read_is_no_reason_to_raise(told):
    broken = FakeVcpu(told.vcpu.state, broken=("sregs",))
    told.narrator.vm.vcpus = [broken]
    told.narrator.on_exit(0, Pio(0x3F8, 1, 1, True, b"A"))
    assert told.lines[-1].startswith("vCPU 0: writes serial's THR 0x41 'A'")


def test_without_capstone_it_is_said_once_and_the_rest_is_told(monkeypatch):
    def missing(*_):
        raise MissingExtraError("disassembly", "capstone", "debug")

    monkeypatch.setattr("pyvmm.trace.narrator.disassemble", missing)
    told = Told()
    assert told.exits(Pio(0x3F8, 1, 1, True, b"A"), "ee").startswith("writes serial's THR")
    assert sum("capstone" in line for line in told.lines) == 1
    assert disasm.disassemble is not missing


def test_other_exits_are_told_with_what_is_known(told):
    assert told.exits(Hlt(), "f4", done=True) == "`hlt` halts until an interrupt comes (SDM volume 2A, HLT)"
    assert "triple fault" in told.exits(Shutdown(), "0f0b")
    completed = InternalError(1, (), bytes.fromhex("660fefc0"))
    completed.completed = "pxor"
    assert told.exits(completed, "660fefc0").startswith(
        "`pxor xmm0, xmm0` KVM could not go on with an instruction: sub"
    )
    assert "pyvmm completed it: pxor" in told.lines[-1]
    assert "model-specific register" in told.exits(Rdmsr(0x10, 1), "0f32")
    before = len(told.lines)
    told.narrator.on_exit(0, Interrupted())
    assert len(told.lines) == before


def test_a_device_that_comes_later_is_known(told):
    told.machine.mmio.attach(0xE0000000, 0x1000, Own())
    assert told.exits(Mmio(0xE0000004, 4, True, bytes(4)), "8907").startswith("`mov dword ptr [rdi], eax` writes own's")
    told.machine.mmio.detach(0xE0000000)
    assert "nobody answers" in told.exits(Mmio(0xE0000004, 4, True, bytes(4)), "8907")


class Own:
    """A device that a program has attached."""

    name = "own"
    lock = Lock()

    def read(self, offset, size):
        return 0

    def write(self, offset, size, value):
        pass


def test_only_what_is_wanted_is_told():
    told = Told(["rtc"])
    told.exits(Pio(layout.SERIAL_PORT, 1, 1, True, b"A"), "ee")
    told.exits(Pio(layout.CMOS_PORT, 1, 1, True, b"\0"), "ee")
    assert [line.partition("writes ")[2][:5] for line in told.lines[1:]] == ["rtc's"]


def test_the_end_says_how_often_the_last_line_came(told):
    for _ in range(3):
        told.exits(Pio(0x3FD, 1, 1, False, b"\x60"), "ec")
    told.narrator.on_lifecycle("ended")
    assert told.lines[-2:] == ["  the same again, x 2", "the run: ended"]


# --- pyvmm trace explain ----------------------------------------------------------------------------------------------


def test_a_trace_is_explained(capsys):
    sample = str(Path(__file__).parent / "sample_trace.jsonl")
    assert main(["explain", sample]) == 0
    out = capsys.readouterr().out
    assert "serial's" in out and "the run:" in out
    assert main(["explain", sample, "--device", "serial"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} <= {"vCPU", "serial:", "the"}
    with pytest.raises(UsageError, match="nothing to explain is called 'foo'"):
        main(["explain", sample, "--device", "foo"])
    assert LINES[layout.SERIAL_IRQ] == "serial"


def test_a_trace_that_somebody_made_up_is_explained_as_far_as_it_goes(tmp_path, capsys):
    path = tmp_path / "odd.jsonl"
    odd = [
        {"kind": "trace", "format": 1, "devices": 5, "kernel": ["x"], "t": 0},
        {"kind": "exit", "t": 1, "vcpu": "x", "reason": ["IO"], "rip": -1},
        {"kind": "exit", "t": 2, "space": "pio", "at": "x", "words": 5, "device": "a\x1b[2J"},
        {"kind": "queue", "t": 3, "event": {}, "device": 7},
        {"kind": "interrupt", "t": 4, "level": [], "gsi": 1 << 70},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in odd))
    assert main(["explain", str(path)]) == 0
    assert main(["explain", str(path), "--device", "other"]) == 0
    assert "\x1b" not in capsys.readouterr().out
