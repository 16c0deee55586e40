"""The control socket of `pyvmm run`: its name while it runs, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from pyvmm.control.client import Client, running
from tests.support import guests
from tests.support.cli import LIMIT, PYVMM, environment, pyvmm, wait_for

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
