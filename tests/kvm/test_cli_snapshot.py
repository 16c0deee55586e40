"""`pyvmm snapshot create`, `restore` and `inspect`, as at a shell."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm.control.client import running
from tests.support.cli import ECHO, LIMIT, PYVMM, environment, pyvmm

pytestmark = pytest.mark.needs("kvm")

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_RUNTIME_DIR", str(tmp_path / "run"))


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    path = tmp_path / "echo.bin"
    path.write_bytes(ECHO)
    return path


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts VMs, each with pipes."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*words: object) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [*PYVMM, *map(str, words)]
        started.append(subprocess.Popen(command, env=environment(), bufsize=0, **pipes))  # type: ignore[call-overload]
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def echoes(process: subprocess.Popen[bytes], text: bytes) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(text)
    got = b""
    while len(got) < len(text):
        piece = process.stdout.read(len(text) - len(got))
        assert piece, process.communicate()
        got += piece
    assert got == text


@pytest.fixture
def saved(start: Start, echo: Path, tmp_path: Path) -> Path:
    """A snapshot of a VM that still runs."""
    process = start("run", echo, "--mem", "16M", "--name", "first", "--timeout", LIMIT)
    echoes(process, b"before")
    path = tmp_path / "a snapshot"
    done = pyvmm("snapshot", "create", "first", path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    echoes(process, b"and after")
    return path


def test_a_vm_is_saved_and_others_go_on_from_there(saved: Path, start: Start) -> None:
    clones = [start("snapshot", "restore", "--name", f"clone{n}", "--timeout", LIMIT, saved) for n in range(2)]
    for clone in clones:
        echoes(clone, b"a clone")
    assert running() == ["clone0", "clone1", "first"]
    done = pyvmm("snapshot", "create", "clone0", saved)
    assert done.returncode == 2
    assert done.stderr.decode().startswith(f"pyvmm: snapshot {saved}: the VM was restored from it"), done.stderr
    for clone, signalled in zip(clones, (False, True), strict=True):
        if signalled:
            clone.send_signal(signal.SIGTERM)
        else:
            assert clone.stdin is not None
            clone.stdin.write(b"q")
        assert clone.wait(LIMIT) == (128 + signal.SIGTERM if signalled else 1)
    assert running() == ["first"]


def test_a_clone_has_its_own_disk_network_and_sockets(start: Start, echo: Path, tmp_path: Path) -> None:
    images = [tmp_path / "image", tmp_path / "the same elsewhere"]
    for image in images:
        image.write_bytes(bytes(1 << 16))
    os.utime(images[1], ns=(0, images[0].stat().st_mtime_ns))
    places = ["--disk", f"{images[0]},overlay", "--net", f"socket={tmp_path}/switch", "--vsock", tmp_path / "vsock"]
    first = start("run", echo, "--mem", "16M", "--name", "first", "--timeout", LIMIT, *places)
    echoes(first, b"before")
    path = tmp_path / "s"
    assert pyvmm("snapshot", "create", "first", path).returncode == 0
    done = pyvmm("snapshot", "restore", path)
    assert done.returncode == 125 and f"{tmp_path}/vsock" in done.stderr.decode(), "it is in use"
    others = ["--disk", f"{images[1]},overlay", "--net", f"socket={tmp_path}/other,mac=52:54:00:00:00:09"]
    clone = start("snapshot", "restore", "--timeout", LIMIT, *others, "--vsock", f"{tmp_path}/vsock2,cid=9", path)
    echoes(clone, b"a clone")
    echoes(first, b"the first one")
    for words, said in ((["--disk", images[0]], b"overlay"), (["--net", "none"], b"0 nets: the snapshot's VM has 1")):
        done = pyvmm("snapshot", "restore", *words, path)
        assert done.returncode == 2 and said in done.stderr
    for words in (["--report", images[0]], ["--console", f"file:{images[0]}"]):
        done = pyvmm("snapshot", "restore", *words, path)
        assert done.returncode == 2 and b"is read by this VM and would be overwritten" in done.stderr
    assert images[0].read_bytes() == bytes(1 << 16)


def test_a_restored_run_has_limits_and_a_report_as_any(saved: Path, start: Start, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    clone = start("snapshot", "restore", "--timeout", "0.2", "--report", report, saved)
    assert clone.wait(LIMIT) == 124
    assert json.loads(report.read_text())["reason"] == "time-limit"


def test_what_a_snapshot_is_of_can_be_seen(saved: Path, echo: Path, tmp_path: Path) -> None:
    shown = json.loads(pyvmm("snapshot", "inspect", "--json", "--verify", saved).stdout)
    assert (shown["kernel"], shown["cpus"], shown["mem"]) == (str(echo), 1, 16 << 20)
    assert (shown["devices"], shown["disks"], shown["bases"], shown["verified"]) == ([], [], [], True)
    done = pyvmm("snapshot", "create", "--base", saved, "first", tmp_path / "on top")
    assert (done.returncode, done.stderr) == (0, b"")
    text = pyvmm("snapshot", "inspect", tmp_path / "on top").stdout.decode()
    assert f"bases        {saved}\n" in text and "verified     not asked for (--verify)\n" in text


def test_damage_is_told_in_a_line(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    (memory,) = copy.glob("memory-*")
    memory.chmod(0o644)
    with memory.open("r+b") as file:
        file.seek(0x7C00)
        file.write(b"\xf4")
    for words in (["inspect"], ["inspect", "--verify"], ["restore"]):
        done = pyvmm("snapshot", *words, copy)
        [line] = done.stderr.decode().splitlines()
        assert (done.returncode, done.stdout) == (127, b"") and "has a wrong checksum" in line, (words, line)
    (copy / "state.json").write_bytes(b"")
    done = pyvmm("snapshot", "inspect", copy)
    assert (done.returncode, done.stderr.count(b"\n")) == (127, 1) and b"state.json: is empty" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no verb given (expected create, restore, inspect)"),
        (("move",), "unknown verb 'move'"),
        (("create", "nobody"), "PATH"),
        (("create", "nobody", "path"), "nobody"),
        (("restore",), "one PATH expected"),
        (("restore", "one", "two"), "one PATH expected, but there are 2"),
        (("restore", "--mem", "1G", "path"), "--mem"),
        (("restore", "nothing"), "is no snapshot"),
        (("inspect", "nothing"), "is no snapshot"),
        (("inspect", "."), "is no snapshot"),
    ],
)
def test_mistakes_are_told_in_a_line_that_names_the_thing(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = pyvmm("snapshot", *words, cwd=tmp_path)
    assert done.returncode in (2, 125, 127) and done.stdout == b""
    assert said in done.stderr.decode() and "Traceback" not in done.stderr.decode(), done.stderr
