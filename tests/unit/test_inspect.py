"""`pyvmm inspect NAME WHAT`, over a control socket, of a VM that is made up."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest

from pyvmm.cli.running import RUNNING, VIEWS
from pyvmm.control.client import Client
from pyvmm.control.server import ControlServer
from pyvmm.debug import views
from pyvmm.errors import BackendError, UsageError, VcpuStuckError
from tests.support.fakevcpu import machine
from tests.unit.test_views import subject


class Holds:
    """Counts how often the VM was made to stand still, and whether it does."""

    def __init__(self) -> None:
        self.times = self.now = 0
        self.stuck = False

    @contextmanager
    def still(self):
        if self.stuck:
            raise VcpuStuckError("1 vCPU(s) did not come back")
        self.times += 1
        self.now += 1
        try:
            yield
        finally:
            self.now -= 1


@pytest.fixture
def holds():
    return Holds()


@pytest.fixture
def vm(tmp_path, monkeypatch, holds):
    """A VM that stands under the name `a`."""
    monkeypatch.setenv("PYVMM_RUNTIME_DIR", str(tmp_path))
    made = subject(*machine(b"\xf4"))
    made.state, made.still = "running", holds.still
    server = ControlServer(made, "a")
    server.open()
    server.start()
    yield made
    server.close()


def inspect(capfdbinary, *argv):
    assert RUNNING["inspect"].main(["a", *argv]) == 0
    return capfdbinary.readouterr().out.decode()


def test_a_view_is_shown_as_text_and_as_json(vm, holds, capfdbinary):
    shown = inspect(capfdbinary, "registers")
    assert shown == "\n".join(views.registers(vm, 0)) + "\n"
    found = json.loads(inspect(capfdbinary, "--json", "registers", "all"))
    assert found["registers"]["rip"] == "0x100000" and "xmm0" in found["floating"]
    assert (holds.times, holds.now) == (2, 0)


def test_options_may_stand_anywhere(vm, capfdbinary):
    expected = views.hexdump(vm, 0x100000, 16, physical=True)
    for argv in (["--physical", "dump", "0x100000", "16"], ["dump", "0x100000", "16", "--physical"]):
        assert inspect(capfdbinary, *argv).splitlines() == expected
    assert inspect(capfdbinary, "--cpu", "0", "paging", "rip") == inspect(capfdbinary, "paging", "rip", "--cpu", "0")


def test_an_answer_may_be_longer_than_a_line_of_the_protocol(vm, capfdbinary):
    shown = inspect(capfdbinary, "dump", "0", "65536")
    assert len(shown) > 200_000 and len(shown.splitlines()) == 4096


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nothing"], "unknown view 'nothing'"),
        (["paging", "nowhere"], "'nowhere' is no address"),
        (["registers", "--cpu", "3"], r"there is no vCPU 3 \(expected 0 to 0\)"),
        (["registers", "--cpu", "x"], "invalid int value: 'x'"),
        (["--cpu", "0"], "--cpu and --physical go with what to look at"),
        (["--physical"], "--cpu and --physical go with what to look at"),
        (["memory", "--physical"], "memory: physical addresses are for dump"),
    ],
)
def test_what_cannot_be_meant_gets_one_line(vm, holds, argv, said):
    with pytest.raises(UsageError, match=said) as caught:
        RUNNING["inspect"].main(["a", *argv])
    assert "\n" not in str(caught.value)
    assert holds.now == 0
    with Client("a") as client:  # the next one is answered
        assert client.look(["exits"]).startswith(b"exits 0")


def test_a_vm_that_does_not_stand_still_or_run_says_so(vm, holds):
    holds.stuck = True
    with Client("a") as client, pytest.raises(BackendError, match="did not come back"):
        client.look(["registers"])
    vm.state = "ended"
    with Client("a") as client, pytest.raises(UsageError, match="a does not run: it is ended"):
        client.look(["registers"])


def test_words_are_words(vm):
    with Client("a") as client, pytest.raises(UsageError, match="no list of strings"):
        client.look(["dump", 4])


def test_the_help_names_every_view():
    for name in views.VIEWS:
        assert name in VIEWS
