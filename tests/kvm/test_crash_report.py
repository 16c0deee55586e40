"""The crash report as a user meets it: guests that end badly under `pyvmm run`, what stderr says, and the status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.errors import STATUS_CRASH, STATUS_TIME_LIMIT
from pyvmm.kvm.host import Host
from tests.support.cli import PYVMM

pytestmark = pytest.mark.needs("kvm")

# Machine code, each byte here because a report is about bytes.
UD2 = "0f 0b"
XGETBV = "0f 01 d0"  # refused by a KVM that emulates ring 0; elsewhere #UD while CR4.OSXSAVE is clear
LOOP = "eb fe"
CALL_0 = "31 c0 ff d0"  # xor eax, eax; call rax
LOAD_FAR = "48 b8 00 00 00 00 00 01 00 00 8b 00"  # mov rax, 1 TiB; mov eax, [rax]
PUSH_NOWHERE = "bc 00 00 00 40 50 0f 0b"  # mov esp, 1 GiB; push rax; ud2
JUMP_TO_IOAPIC = "b8 00 00 c0 fe ff e0"  # mov eax, 0xfec00000; jmp rax
CLI_HLT = "fa f4"
POLL = "66 ba fd 03 ec eb fd"  # mov dx, 0x3fd; in al, dx; jmp back to the in


def run(
    tmp_path: Path, code: str, *options: str, mode: str = "long"
) -> tuple[subprocess.CompletedProcess[str], dict[str, object]]:
    """Run `code` as a flat binary; what the process gave, and the report file."""
    kernel, report = tmp_path / "kernel.bin", tmp_path / "report.json"
    kernel.write_bytes(bytes.fromhex(code))
    command = [*PYVMM, "run", str(kernel), "--mem", "16M", "--flat-mode", mode]
    command += ["--report", str(report), "--timeout", "20s", *options]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    return result, json.loads(report.read_text())


def likely(result: subprocess.CompletedProcess[str]) -> str:
    return "\n".join(line for line in result.stderr.splitlines() if line.startswith("pyvmm: likely: "))


def test_triple_fault_is_told_line_by_line(tmp_path: Path) -> None:
    result, report = run(tmp_path, UD2)
    assert result.returncode == STATUS_CRASH
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert all(line.startswith("pyvmm:") for line in lines)
    assert lines[0] == "pyvmm: the guest crashed: triple fault"
    assert "first exception was #UD invalid opcode" in lines[1]
    assert "there is no IDT (limit 0x0)" in lines[1]
    assert "pyvmm: vcpu 0: long mode (64-bit code), 4-level paging, CPL 0, runnable" in lines
    assert lines[-1] == "pyvmm:     SHUTDOWN (triple fault)"
    assert any("<0f> 0b" in line for line in lines)
    assert (report["reason"], report["status"]) == ("crash", STATUS_CRASH)
    crash = report["crash"]
    assert isinstance(crash, dict)
    assert crash["vcpus"][0]["code"]["bytes"].startswith("0f0b")
    assert crash["vcpus"][0]["registers"]["rip"] == "0x100000"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (CALL_0, "is in the first page of memory"),  # mapped and full of zeroes: the guest runs on, to the GDT at 0x500
        (LOAD_FAR, "#PF page fault, at the address in CR2, 0x10000000000: PML4E not present"),
        (PUSH_NOWHERE, "RSP 0x3ffffff8 is outside RAM"),
        (JUMP_TO_IOAPIC, "is outside RAM, which is 0x0 to 0xffffff"),
    ],
    ids=["call-0", "load-far", "push-nowhere", "jump-to-ioapic"],
)
def test_crashes_and_what_is_supposed(tmp_path: Path, code: str, said: str) -> None:
    result, _ = run(tmp_path, code, "--timeout", "5s")
    assert result.returncode in (STATUS_CRASH, STATUS_TIME_LIMIT)
    assert said in likely(result), result.stderr


def test_an_instruction_that_the_host_cannot_emulate(tmp_path: Path) -> None:
    result, report = run(tmp_path, XGETBV)
    assert result.returncode == STATUS_CRASH
    if Host().quirks.instructions_refused:
        assert "INTERNAL_ERROR suberror 1" in result.stderr.splitlines()[0]
        assert "KVM had to emulate xgetbv" in likely(result)
        assert "noxsave" in likely(result)
        assert "0f 01 d0" in str(report["detail"])
    else:
        assert "triple fault" in result.stderr.splitlines()[0]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (LOOP, "it jumps to itself"),
        (CLI_HLT, "halted after a `hlt`, with interrupts off"),
        (POLL, "the guest polls: IO in port 0x3fd size 1 -> 0x60"),
    ],
    ids=["loop", "halted", "poll"],
)
def test_time_limit(tmp_path: Path, code: str, said: str) -> None:
    result, report = run(tmp_path, code, "--timeout", "1s")
    assert result.returncode == STATUS_TIME_LIMIT
    assert result.stderr.splitlines()[0] == "pyvmm: the guest did not end: the time limit of 1 s was reached"
    assert said in likely(result), result.stderr
    assert report["reason"] == "time-limit"


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        ("real", "real mode, no paging, CPL 0"),
        ("protected", "protected mode (32-bit code), no paging, CPL 0"),
        ("long", "long mode (64-bit code), 4-level paging, CPL 0"),
    ],
)
def test_every_mode_is_named(tmp_path: Path, mode: str, text: str) -> None:
    result, _ = run(tmp_path, LOOP, "--timeout", "1s", mode=mode)
    assert f"vcpu 0: {text}, runnable" in result.stderr


def test_every_vcpu_is_there(tmp_path: Path) -> None:
    result, _ = run(tmp_path, UD2, "--cpus", "2")
    assert "pyvmm: likely (vcpu 0): " in result.stderr
    assert result.stderr.splitlines()[-1].startswith("pyvmm: vcpu 1: ")
    assert "waiting for" in result.stderr.splitlines()[-1]


def test_without_capstone_it_says_what_installs_it(tmp_path: Path) -> None:
    (tmp_path / "capstone.py").write_text("raise ImportError\n")
    kernel = tmp_path / "kernel.bin"
    kernel.write_bytes(bytes.fromhex(UD2))
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from pyvmm.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "run", str(kernel), "--flat-mode", "long", "--mem", "16M"]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert result.returncode == STATUS_CRASH
    assert "pip install 'pyvmm-kvm[debug]'" in result.stderr
    assert "#UD invalid opcode" in result.stderr
