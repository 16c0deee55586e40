"""The control socket of `pyvmm run`: its name while it runs, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from pyvmm.control.client import Client, running
from tests.support import guests
from tests.support.cli import ECHO, LIMIT, PYVMM, environment, pyvmm, wait_for
from tests.support.session import Session

pytestmark = pytest.mark.needs("kvm")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    path = tmp_path / "run"
    monkeypatch.setenv("PYVMM_RUNTIME_DIR", str(path))
    return path


@pytest.fixture
def spin(tmp_path):
    path = tmp_path / "spin.bin"
    path.write_bytes(guests.SPIN)
    return path


@pytest.fixture
def run(spin):
    """Starts VMs that do not end by themselves."""
    started = []

    def start(*options):
        words = [*PYVMM, "run", str(spin), *options]
        started.append(subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_vm_has_the_name_that_it_is_given_until_it_ends(run, folder):
    process = run("--name", "web", "--balloon")
    wait_for(lambda: running() == ["web"], "the VM", LIMIT)
    with Client("web") as client:
        assert client.ask("inspect")["pid"] == process.pid
        wait_for(lambda: client.ask("inspect")["state"] == "running", "it to run", LIMIT)
    assert pyvmm("balloon", "web", "16M").returncode == 0
    found = json.loads(pyvmm("balloon", "web", "--json").stdout)
    assert found == {"target": 16 << 20, "actual": 0, "statistics": {}}
    other = pyvmm("run", "kernel-that-is-not-looked-for", "--name", "web")
    assert other.returncode == 125
    assert other.stderr == b"pyvmm: a VM called web is running already\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT) == 128 + signal.SIGTERM
    assert list(folder.iterdir()) == []


def test_a_vm_without_a_name_is_called_by_its_process(run, folder):
    process = run()
    wait_for(lambda: running() == [f"vm-{process.pid}"], "the VM", LIMIT)
    process.kill()
    process.wait(LIMIT)
    assert len(list(folder.iterdir())) == 1, "nobody was there to remove it"
    assert running() == [] and list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_had_is_an_error_for_a_named_vm_alone(tmp_path, folder):
    folder.mkdir(0o755)
    hello = tmp_path / "hello.bin"
    hello.write_bytes(guests.says(b"hello", 3))
    done = pyvmm("run", hello)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"hello", b"")
    done = pyvmm("run", hello, "--name", "web")
    assert done.returncode == 125 and done.stdout == b""
    [line] = done.stderr.decode().splitlines()
    assert line == f"pyvmm: the folder of control sockets {folder} is open to others: mode 755 (expected 700)"
    assert os.listdir(folder) == []


LISTENS = bytes.fromhex("ba0206 b80001 ef ba0006 ed f6c401 74fa ba0406 b83400 86e0 ef ebfe")
"""Real mode: enable the power button, wait for it, switch off."""


def test_pausing_and_resuming(run):
    run("--name", "web")
    wait_for(lambda: b"running" in pyvmm("ps").stdout, "it to run", LIMIT)
    for verb, state in (("pause", "paused"), ("resume", "running"), ("pause", "paused")):
        done = pyvmm(verb, "web")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert json.loads(pyvmm("inspect", "web", "--json").stdout)["state"] == state
    done = pyvmm("stop", "web")
    assert (done.returncode, done.stderr.startswith(b"pyvmm: web is paused")) == (2, True)
    assert pyvmm("kill", "web").returncode == 0


def test_killing(run, folder):
    process = run("--name", "web")
    wait_for(lambda: b"running" in pyvmm("ps").stdout, "it to run", LIMIT)
    assert pyvmm("kill", "web").returncode == 0
    assert process.wait(LIMIT) == 137 and list(folder.iterdir()) == []
    assert pyvmm("ps").stdout.count(b"\n") == 1


def test_stopping_what_does_not_listen_ends_it(run):
    process = run("--name", "web")
    wait_for(lambda: b"running" in pyvmm("ps").stdout, "it to run", LIMIT)
    assert pyvmm("stop", "web", "--timeout", "300ms").returncode == 0
    assert process.wait(LIMIT) == 137


def test_stopping_by_the_power_button(run, spin):
    spin.write_bytes(LISTENS)
    process = run("--name", "web")
    wait_for(lambda: b"running" in pyvmm("ps").stdout, "it to run", LIMIT)
    assert pyvmm("stop", "web").returncode == 0
    assert process.wait(LIMIT) == 0


def test_logs_and_statistics(run, spin, tmp_path):
    spin.write_bytes(guests.says(b"hello", 0)[:-5].replace(bytes.fromhex("e6f4f4"), bytes.fromhex("ebfe90")) + b"hello")
    run("--name", "web", "--console", f"file:{tmp_path / 'out'}")
    wait_for(lambda: pyvmm("logs", "web").stdout == b"hello", "the log", LIMIT)
    wait_for(lambda: (tmp_path / "out").read_bytes() == b"hello", "the file")
    # After some seconds without an exit somebody looks at the vCPU, which is an exit of another kind.
    assert json.loads(pyvmm("stat", "web", "--json").stdout)["exits"]["IO"] == 5


def test_attaching_types_and_shows(run, spin, tmp_path):
    spin.write_bytes(ECHO)
    run("--name", "web", "--console", f"file:{tmp_path / 'out'}")
    wait_for(lambda: b"running" in pyvmm("ps").stdout, "it to run", LIMIT)
    words = [*PYVMM, "attach", "web"]
    attached = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment())
    attached.stdin.write(b"hello")
    attached.stdin.flush()
    assert attached.stdout.read(5) == b"hello"
    attached.stdin.write(b"q")
    attached.stdin.close()
    assert attached.wait(LIMIT) == 0 and attached.stdout.read() == b""
    attached.stdout.close()
    assert (tmp_path / "out").read_bytes() == b"hello"


def test_attaching_a_terminal_and_leaving_the_vm_to_itself(run, spin, tmp_path):
    spin.write_bytes(ECHO)
    process = run("--name", "web", "--console", f"file:{tmp_path / 'out'}")
    wait_for(lambda: b"running" in pyvmm("ps").stdout, "it to run", LIMIT)
    session = Session("web", verb="attach")
    try:
        wait_for(session.raw, "raw mode", LIMIT)
        session.type(b"\x03a\x01\x01\x01h")
        session.see(b"\x03a\x01")
        session.type(b"\x01x")
        assert session.end() == 0
        assert session.errors().startswith("pyvmm: attached to web; Ctrl-A X leaves it running")
    finally:
        session.close()
    assert process.poll() is None and running() == ["web"]


def test_a_terminal_is_put_back_when_attaching_is_ended_by_a_signal(run):
    run("--name", "web", "--console", "file:/dev/null")
    wait_for(lambda: b"running" in pyvmm("ps").stdout, "it to run", LIMIT)
    session = Session("web", verb="attach")
    try:
        wait_for(session.raw, "raw mode", LIMIT)
        session.process.send_signal(signal.SIGTERM)
        assert session.end() == 128 + signal.SIGTERM
    finally:
        session.close()
