"""`pyvmm run -- CMD` around a guest that is pyvmm-agent on this host: streams, status, signals, the VM's end."""

from __future__ import annotations

import errno
import os
import threading
import time
from types import SimpleNamespace

import pytest

from pyvmm.cli import command
from pyvmm.cli import passing as module
from pyvmm.cli.command import CommandRun
from pyvmm.cli.configuration import make_config
from pyvmm.cli.options import parse
from pyvmm.cli.passing import Passing, variables
from pyvmm.cli.rootfs import GuestFiles
from pyvmm.cli.runoptions import RUN
from pyvmm.errors import GuestAgentError, PyvmmError, UsageError
from pyvmm.guest.session import Guest
from pyvmm.hardware import Share
from tests.support.agent import HostAgent, remove

RO = Share("/", "ro", readonly=True)


@pytest.fixture(scope="module", autouse=True)
def cleaned():
    yield
    remove()


class FakeVm:
    """A VM whose guest is the agent on this host."""

    def __init__(self, guest, disks=(), shares=()):
        self.guest = guest
        self.config = SimpleNamespace(disks=disks, shares=shares, kernel="/nothing")
        self.console_log = b""
        self.slots = ()
        self._virtio = None
        self.exit = None
        self.agent = SimpleNamespace(shutdown=self.power_off)
        self.powered_off = False

    def power_off(self):
        self.powered_off = True

    def stop(self, outcome):
        self.exit = self.exit or outcome

    def wait(self, timeout=None):
        return self.exit


class Around:
    """A CommandRun between pipes: `given` is its standard input."""

    def __init__(self, monkeypatch, words, given=b"", **settings):
        self.agent = HostAgent()
        self.vm = FakeVm(Guest(self.agent.agent, self.agent.exec), **settings)
        self.run = run = CommandRun.__new__(CommandRun)
        run.command, run.env, run.user, run.values, run.files = words, {"A": "b"}, "", {}, None
        run.signals = SimpleNamespace(forward=None)
        run._lacking = ""
        run.passing = Passing(run.signals, quit=lambda: None, look=str)
        self.fds = []
        for name in ("STDIN", "STDOUT", "STDERR"):
            ends = os.pipe()
            self.fds.append(list(ends))
            monkeypatch.setattr(module, name, ends[0 if name == "STDIN" else 1])
        os.write(self.fds[0][1], given)
        os.close(self.fds[0].pop())

    def end(self):
        """How it ended, and what the command wrote."""
        outcome = self.run._await(self.vm)
        written = []
        for pair in self.fds[1:]:
            os.close(pair.pop())
            written.append(b"".join(iter(lambda pair=pair: os.read(pair[0], 1 << 16), b"")) if pair else b"")
        for pair in self.fds:
            for fd in pair:
                os.close(fd)
        self.agent.close()
        return outcome.reason, outcome.status, *written


@pytest.mark.needs("gcc")
def test_streams_status_and_variables_pass(monkeypatch):
    around = Around(monkeypatch, ["sh", "-c", "cat; echo $A; echo err >&2; exit 7"], b"data\n")
    assert around.end() == ("command", 7, b"data\nb\n", b"err\n")
    assert not around.vm.powered_off


@pytest.mark.needs("gcc")
@pytest.mark.parametrize(
    ("settings", "powered_off"),
    [({"disks": ["a disk"]}, True), ({"shares": [Share("/", "rw")]}, True), ({"shares": [RO]}, False)],
)
def test_a_guest_that_may_have_written_something_is_powered_off_in_order(monkeypatch, settings, powered_off):
    around = Around(monkeypatch, ["true"], **settings)
    assert around.end() == ("command", 0, b"", b"")
    assert around.vm.powered_off == powered_off


@pytest.mark.needs("gcc")
def test_a_directory_that_the_guest_cannot_mount_ends_the_run_with_the_reason(monkeypatch, tmp_path):
    around = Around(monkeypatch, ["true"])
    around.run.files = GuestFiles(rwdirs=[str(tmp_path)])
    around.vm.guest.mount = lambda *words: (_ for _ in ()).throw(GuestAgentError("no 9p", errno=errno.ENODEV))
    assert around.end()[:2] == ("error", 125)
    assert around.vm.exit.detail == "no 9p: its kernel lacks CONFIG_9P_FS (pyvmm kconfig)"


@pytest.mark.needs("gcc")
def test_with_a_root_a_command_starts_in_the_current_folder(monkeypatch):
    around = Around(monkeypatch, ["pwd"])
    around.run.files = SimpleNamespace(mount=lambda guest: None, folder="/usr")
    assert around.end() == ("command", 0, b"/usr\n", b"")


@pytest.mark.needs("gcc")
@pytest.mark.parametrize(("words", "status"), [(["/no/such"], 127), (["/"], 126), (["sh", "-c", "kill -9 $$"], 137)])
def test_a_status_is_what_a_shell_would_have(monkeypatch, capfd, words, status):
    assert Around(monkeypatch, words).end()[:2] == ("command", status)
    assert ("No such file" in capfd.readouterr().err) == (status == 127)


@pytest.mark.needs("gcc")
def test_output_that_nobody_reads_is_the_commands_broken_pipe(monkeypatch):
    around = Around(monkeypatch, ["sh", "-c", "while :; do echo y; done"])
    os.close(around.fds[1][0])
    outcome = around.run._await(around.vm)
    assert (outcome.reason, outcome.status) == ("command", 141)
    around.agent.close()


@pytest.mark.needs("gcc")
def test_a_program_left_behind_with_the_output_does_not_keep_it(monkeypatch):
    monkeypatch.setattr(module, "QUIET_TAIL", 0.1)
    began = time.monotonic()
    assert Around(monkeypatch, ["sh", "-c", "echo hi; sleep 100 &"]).end() == ("command", 0, b"hi\n", b"")
    assert time.monotonic() - began < 30


@pytest.mark.needs("gcc")
def test_signals_are_the_commands_until_it_has_ignored_three(monkeypatch):
    monkeypatch.setattr(module, "SAME", 0.0)
    around = Around(monkeypatch, ["sh", "-c", "trap '' INT; echo go; while :; do sleep 0.05; done"])
    found = []
    thread = threading.Thread(target=lambda: found.append(around.end()))
    thread.start()
    deadline = time.monotonic() + 20
    while around.run.signals.forward is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [around.run.signals.forward(2) for _ in range(4)] == [True, True, True, False]
    assert around.run.signals.forward(2) is False
    around.run.passing._process.kill()
    thread.join(20)
    assert found[0][:2] == ("command", 137)


@pytest.mark.needs("gcc")
def test_the_vms_end_is_its_own(monkeypatch):
    around = Around(monkeypatch, ["sleep", "100"])
    around.vm.exit = SimpleNamespace(reason="panic", status=122)

    def fail(process):
        raise PyvmmError("the VM ended")

    around.run._through = fail
    assert around.end()[:2] == ("panic", 122)


@pytest.mark.needs("gcc")
@pytest.mark.parametrize(
    ("status", "console", "said"),
    [
        (0, b"", "probably lacks CONFIG_VIRTIO_MMIO"),
        (1, b"", "probably lacks CONFIG_VIRTIO_CONSOLE"),
        (0, b"VFS: Unable to mount root fs on", "probably lacks CONFIG_BLK_DEV_INITRD"),
        (7, b"", "is there one in its initramfs"),
    ],
)
def test_a_guest_whose_agent_does_not_come_is_told_what_it_may_lack(monkeypatch, status, console, said):
    monkeypatch.setattr(command, "DRIVER_WAIT", 0.01)
    monkeypatch.setattr(command, "AGENT_WAIT", 0.02)
    around = Around(monkeypatch, ["true"])
    around.agent.agent.opened.clear()
    around.vm.console_log = console
    around.vm._virtio = SimpleNamespace(console=SimpleNamespace(status=status))
    assert around.end()[:2] == ("error", 125)
    assert "no agent came up in the guest within 0.01 s: " in around.vm.exit.detail and said in around.vm.exit.detail


@pytest.mark.needs("gcc")
@pytest.mark.parametrize(
    ("reason", "told"), [("panic", True), ("time-limit", True), ("signal", False), ("quit", False)]
)
def test_a_vm_that_ends_before_its_agent_comes_is_told_of_its_kernel_if_that_may_be_why(monkeypatch, reason, told):
    around = Around(monkeypatch, ["true"])
    around.vm.exit = SimpleNamespace(reason=reason, status=1, detail="")
    around.vm.console_log = b"VFS: Unable to mount root fs on"
    around.vm.guest.wait_ready = lambda timeout: (_ for _ in ()).throw(PyvmmError("the VM ended"))
    assert around.end()[0] == reason
    assert ("CONFIG_BLK_DEV_INITRD" in around.run._lacking) == told


@pytest.mark.needs("gcc")
def test_what_cannot_be_meant_ends_the_vm_with_a_reason(monkeypatch):
    around = Around(monkeypatch, ["a" * 200_000])
    assert around.end()[:2] == ("error", 125)
    assert "a command of 2 words and 200" in around.vm.exit.detail


def test_what_a_command_makes_of_the_settings(tmp_path):
    kernel = tmp_path / "kernel"
    arguments = ["-i", "initrd", "-a", "x", str(kernel), "--", "ls", "--mem", "-v"]
    config = make_config(parse(RUN, arguments))
    assert (config.agent, config.append, config.stuck_at_boot) == (True, "quiet pyvmm.agent x", None)
    assert make_config(parse(RUN, ["-v", *arguments])).append == "pyvmm.agent x"
    with pytest.raises(UsageError, match="no command after --"):
        make_config(parse(RUN, [str(kernel), "--"]))


def test_variables_are_given_or_taken_from_here(monkeypatch):
    monkeypatch.setenv("HERE", "x=y")
    assert variables(["A=b=c", "HERE", "E="]) == {"A": "b=c", "HERE": "x=y", "E": ""}
    monkeypatch.delenv("HERE")
    with pytest.raises(UsageError, match="HERE has no value here"):
        variables(["HERE"])
