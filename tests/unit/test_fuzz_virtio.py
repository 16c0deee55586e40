"""The virtio devices under the structured fuzzer, so many cases each; and the fuzzer, on devices with planted bugs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.backends import raw
from pyvmm.errors import BusConflictError
from pyvmm.pci.decoder import Decoder
from pyvmm.pci.msix import Msix
from pyvmm.virtio import queue
from pyvmm.virtio.transport import Transport
from tests.fuzz import __main__ as command
from tests.fuzz.cases import Case, Draw, decode
from tests.fuzz.fuzzer import Fuzzer, replay
from tests.fuzz.harness import Harness
from tests.fuzz.kinds import Kinds, templates
from tests.fuzz.lines import Lines
from tests.fuzz.subjects import SUBJECTS
from tests.fuzz.subjects.engine import Echo, Engine

CASES = 400


@pytest.mark.parametrize("name", SUBJECTS)
def test_nothing_a_driver_does_gets_the_better_of_a_device(name):
    """Every kind of error is reached, too: a check that is never reached would not be tested by this."""
    fuzzer = Fuzzer(SUBJECTS[name], seed=1)
    fuzzer.run(lambda: fuzzer.cases < CASES)
    assert [failure.case.text(failure.text) for failure in fuzzer.failures.values()] == []
    assert fuzzer.kinds.missing() == []


# --- Planted bugs ----------------------------------------------------------------------------------------------------


def planted(**methods):
    """A kind of device like Echo, with other `methods`."""
    device = type("Planted", (Echo,), methods)

    class Subject(Engine):
        def __init__(self, settings, kinds):
            super().__init__(settings, kinds)
            self.device = device()

    return Subject


def answered(self, queue, taken, *, data=None):
    self.complete(queue, taken, taken.write(taken.read(0, taken.readable_length) if data is None else data))


def looks_up(self, queue, taken):
    {b"": 0}.get(b"") if taken.readable_length != 100 else {}[taken.readable_length]
    answered(self, queue, taken)


def reaches_around(self, queue, taken):
    answered(self, queue, taken, data=self.memory.regions[0].view[-4:])


def reaches_around_in_secret(self, queue, taken):
    try:
        reaches_around(self, queue, taken)
    except Exception:
        answered(self, queue, taken)


def loops(self, queue, taken):
    while taken.readable_length == 600:
        pass
    answered(self, queue, taken)


def waits_for_itself(self, queue, taken):
    with self.plane if taken.readable_length == 600 else self.lock:
        answered(self, queue, taken)


def scribbles(self, queue, taken):
    for view in taken.readable:
        view[:1] = b"!"
    answered(self, queue, taken)


def writes_too_late(self, queue, taken):
    for view in getattr(self, "late", []):
        view[:] = bytes(len(view))
    self.late = taken.writable
    answered(self, queue, taken)


def overstates(self, queue, taken):
    taken.write(taken.read(0, taken.readable_length))
    self.complete(queue, taken, taken.readable_length)


def answers_twice(self, queue, taken):
    answered(self, queue, taken)
    taken._given_back = False
    self.complete(queue, taken)


def allocates(self, queue, taken):
    bytearray(1 << 30 if taken.readable_length == 600 else 1)
    answered(self, queue, taken)


def lies(self, queue, taken):
    answered(self, queue, taken, data=b"x" * taken.readable_length if taken.readable_length > 4 else None)


def does_not_come_back(self):
    if self.kept:
        self.serve = lambda queue: None


BUGS = {
    "KeyError": {"answer": looks_up},
    "outside RAM": {"answer": reaches_around},
    "outside RAM, in secret": {"answer": reaches_around_in_secret},
    "hang": {"answer": loops},
    "hang, in a lock": {"answer": waits_for_itself},
    "memory": {"answer": scribbles},
    "memory, too late": {"answer": writes_too_late},
    "used ring": {"answer": overstates},
    "used ring, twice": {"answer": answers_twice},
    "MemoryError": {"answer": allocates},
    "answer": {"answer": lies},
    "recovery": {"discard": does_not_come_back},
    "interrupt": {"tell": lambda self, queue: None},
    "spins": {"deadline": lambda self: 0.0},
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found_and_made_short(bug):
    fuzzer = Fuzzer(planted(**BUGS[bug]), seed=1, limit=0.1)
    fuzzer.run(lambda: fuzzer.cases < 500 and not fuzzer.failures)
    [failure] = fuzzer.failures.values()
    assert failure.key[0] == bug.split(",")[0]
    assert len(failure.case.operations) <= 4
    again = replay(planted(**BUGS[bug]), failure.case.text(failure.text), limit=0.1)
    assert again is not None and again.key == failure.key
    assert replay(Engine, failure.case.text(failure.text)) is None, "it is the device's fault"


# The alarm may ring inside Hypothesis's garbage-collection callback, which swallows it; it rings again.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_bug_in_the_engine_is_found(monkeypatch):
    """The bound of a chain's length gone: a loop of descriptors has no end."""
    walk = queue.Virtqueue._walk

    def endless(self, head):
        size, self.size = self.size, 1 << 40
        try:
            return walk(self, head)
        finally:
            self.size = size

    monkeypatch.setattr(queue.Virtqueue, "_walk", endless)
    fuzzer = Fuzzer(Engine, seed=1, limit=0.1)
    fuzzer.run(lambda: fuzzer.cases < 500 and ("hang",) not in fuzzer.failures)
    assert ("hang",) in fuzzer.failures


def forgets_masked_messages(self, vector):
    if self._open[vector]:
        self._wires.signal(vector)


def attaches_anywhere(self, key, gpa):
    function, bar = key
    try:
        self._bus.attach(gpa, function.bars[bar].length, function.bars[bar])
    except BusConflictError:
        return False
    return True


def is_any_queue(self):
    return self.device.queues[self._selected]


PCI_BUGS = {
    "interrupt": (Msix, "fire", forgets_masked_messages),
    "decoding": (Decoder, "_attached", attaches_anywhere),
    "IndexError": (Transport, "queue", property(is_any_queue)),
}


@pytest.mark.parametrize("bug", PCI_BUGS)
def test_a_bug_in_the_transport_over_pci_is_found(monkeypatch, bug):
    monkeypatch.setattr(*PCI_BUGS[bug])
    fuzzer = Fuzzer(SUBJECTS["pci"], seed=1)
    fuzzer.run(lambda: fuzzer.cases < 500 and not fuzzer.failures)
    [failure] = fuzzer.failures.values()
    assert failure.key[0] == bug and len(failure.case.operations) <= 4
    monkeypatch.undo()
    assert replay(SUBJECTS["pci"], failure.case.text(failure.text)) is None


def test_data_that_ends_up_elsewhere_is_found(monkeypatch):
    """A short write whose rest is forgotten."""

    def hasty(self, views, offset):
        if views:
            self._pwritev(views, offset)

    monkeypatch.setattr(raw.RawDisk, "writev", hasty)
    fuzzer = Fuzzer(SUBJECTS["block-file"], seed=1)
    fuzzer.run(lambda: fuzzer.cases < 2000 and ("answer",) not in fuzzer.failures)
    assert "sector" in fuzzer.failures["answer",].text


# --- The fuzzer itself -----------------------------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_cases_and_another_one_others():
    runs = [Fuzzer(Engine, seed) for seed in (5, 5, 6)]
    for fuzzer in runs:
        fuzzer.run(lambda fuzzer=fuzzer: fuzzer.cases < 160)
    first, second, other = ((fuzzer.kinds.table(), fuzzer._corpus) for fuzzer in runs)
    assert first == second and first != other


def test_a_case_outlives_being_written_to_a_file():
    fuzzer = Fuzzer(SUBJECTS["net"], seed=1)
    for _ in range(20):
        case = decode(SUBJECTS["net"], fuzzer._make())
        read = Case.parse(case.text("a remark\nof two lines"))
        assert (read.device, read.settings, read.operations) == (case.device, case.settings, case.operations)


def test_zeros_mean_a_good_driver():
    case = decode(Engine, bytes(320))
    with Harness(Engine) as harness:
        assert harness.run(case) is None
        assert not any(name.startswith(("ring", "status", "notified")) for name in harness.kinds.counts)
    draw = Draw(b"")
    assert not draw.rarely(2) and draw.pick("ab") == "a" and draw.number(8) == 0


def test_each_error_that_the_sources_raise_is_known():
    source = Path(queue.__file__).read_text()
    assert len(templates(queue)) == source.count("raise self._wrong(") > 10
    text = "queue 3: head 4 is made available in a table of 4"
    assert [shape for shape, pattern in templates(queue) if pattern.fullmatch(text)] == [
        "queue {}: head {} is made available in a table of {}"
    ]


def test_a_line_that_is_run_for_the_first_time_is_seen():
    lines = Lines([queue])
    with lines:
        queue.Virtqueue(0, 4)
    assert lines.fresh
    lines.fresh = False
    with lines:
        queue.Virtqueue(0, 4)
    assert not lines.fresh and lines.missing()[0].startswith("queue.py: ")


def test_the_command_counts_and_is_content(capsys, monkeypatch):
    monkeypatch.setattr(command, "SUBJECTS", {"engine": SUBJECTS["engine"]})
    monkeypatch.setattr(Kinds, "missing", lambda self: [])
    assert command.main(["--cases", "130"]) == 0
    shown = capsys.readouterr().out
    assert "engine: 130 cases" in shown and "echo: all" in shown and "NEVER" not in shown


def test_a_kind_never_reached_fails_the_command(capsys):
    assert command.main(["--device", "rng", "--cases", "1"]) == 1
    assert "NEVER REACHED: ring: queue {}: chain {} is longer than 2^32 bytes" in capsys.readouterr().out


def test_a_failure_fails_the_command_and_its_file_can_be_run_again(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(command.SUBJECTS, "engine", planted(answer=looks_up))
    monkeypatch.setattr(command, "FOLDER", tmp_path / "fuzz")
    assert command.main(["--device", "engine", "--seconds", "1"]) == 1
    assert "FAILED: KeyError: 100" in capsys.readouterr().out
    [path] = (tmp_path / "fuzz").iterdir()
    assert command.main(["--replay", str(path)]) == 1
    assert "KeyError: 100" in capsys.readouterr().out
    monkeypatch.setitem(command.SUBJECTS, "engine", Engine)
    assert command.main(["--replay", str(path)]) == 0
