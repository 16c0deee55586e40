"""Single steps and hooks on a scripted vCPU: what counts as an instruction, and whom a failure reaches."""

from __future__ import annotations

import threading

import pytest

from pyvmm.errors import KvmError, PyvmmError, UsageError
from pyvmm.kvm.exits import Debug, InternalError, Mmio, Pio
from pyvmm.observe import ExitHooks, Observer
from pyvmm.runloop import Outcome
from pyvmm.stepping import Steps
from tests.unit.test_runloop import LIMIT, Rig, inp, out


class Stepped:
    """A paused machine of one vCPU that is about to be given `script`, in steps."""

    def __init__(self, *script, observers=()):
        self.rig = Rig(list(script), observers=observers)
        self.vcpu = self.rig.vcpus[0]
        self.debugging = []
        self.vcpu.guest_debug = self.debugging.append
        self.rig.control.pausing = self.rig.control.attention = True
        self.rig.start()

    def step(self, count=1, possible=lambda: "", timeout=LIMIT):
        steps = Steps(self.rig.loops[0], self.rig.control, count, possible)

        def cancel():
            steps.cancelled = True

        finished = self.rig.control.perform(self.vcpu, steps, cancel, timeout)
        if steps.error is not None:
            raise steps.error
        return finished

    def end(self):
        self.rig.control.end(Outcome("stopped", 0))
        return self.rig.finish()


def debug():
    return Debug(1, 0x7C00, 0x4000, 0x400)


def test_a_step_turns_debugging_on_and_off_again():
    machine = Stepped(debug(), debug(), debug())
    assert machine.step(2)
    assert machine.debugging == [3, 0, 3, 0]
    assert machine.rig.loops[0].counts[Debug] == 2
    assert machine.end().reason == "stopped"


def test_an_access_is_a_step_of_its_own_and_made_once():
    machine = Stepped(out(1), inp(), debug())
    assert machine.step(2)
    assert machine.rig.device.log == [("write", 0, 1, 1), ("read", 0, 1)]
    machine.end()


def test_the_second_half_of_an_access_belongs_to_its_step():
    one, two = Mmio(0xD0000FFE, 2, True, b"ab"), Mmio(0xD0000800, 2, True, b"cd")
    machine = Stepped((one, two), debug())
    assert machine.step()
    assert machine.rig.memory_device.log == [("write", 0xFFE, 2, 0x6261), ("write", 0x800, 2, 0x6463)]
    machine.end()


def test_what_ends_the_run_ends_the_steps():
    machine = Stepped(debug(), InternalError(3, [], b""), debug())
    machine.step(10)
    assert machine.rig.finish().reason == "crash"
    assert machine.rig.loops[0].counts[Debug] == 1


def test_a_host_that_cannot_step_says_why():
    machine = Stepped(debug())
    with pytest.raises(PyvmmError, match="not here"):
        machine.step(1, lambda: "not here")
    assert machine.debugging == []
    assert machine.end().reason == "stopped"


def test_an_ioctl_that_fails_reaches_who_asked_and_not_the_run():
    machine = Stepped(debug())

    def fail(control):
        raise KvmError("KVM_SET_GUEST_DEBUG", 22)

    machine.vcpu.guest_debug = fail
    with pytest.raises(KvmError, match="KVM_SET_GUEST_DEBUG"):
        machine.step()
    assert machine.end().reason == "stopped"


def test_no_steps_once_the_run_has_ended():
    machine = Stepped(debug())
    machine.end()
    with pytest.raises(UsageError, match="does not stand still"):
        machine.step()


def test_a_hook_is_called_for_its_kind_alone_and_can_be_taken_back():
    seen = []
    hooks = ExitHooks(lambda number: f"vcpu{number}")

    def hook(vcpu, exit):
        seen.append((vcpu, exit.port))

    hooks.add(Pio, hook)
    hooks.add(Pio, hook)
    hooks.on_exit(0, out(1))
    hooks.on_exit(1, debug())
    hooks.remove(Pio, hook)
    hooks.remove(Pio, hook)
    hooks.on_exit(0, out(2))
    assert seen == [("vcpu0", 0x10), ("vcpu0", 0x10)]


def test_an_observer_that_comes_later_sees_what_comes_later():
    class Watcher(Observer):
        def __init__(self):
            self.seen = 0
            self.enough = threading.Event()

        def on_exit(self, vcpu, exit):
            self.seen += 1

    machine = Stepped(debug(), debug())
    machine.step()
    machine.rig.loops[0].observe(watcher := Watcher())
    machine.step()
    assert watcher.seen >= 1
    machine.end()
