"""The virtqueue engine in C, held to the one in Python."""

from __future__ import annotations

import random
import re
import subprocess
from collections import Counter
from functools import partial
from struct import pack

import pytest

from pyvmm._native import build_rings
from pyvmm.memory import GuestMemory
from pyvmm.virtio import spec
from pyvmm.virtio.native import ffi, lib, native_queue
from pyvmm.virtio.queue import QueueError, Virtqueue
from tests.native import fuzz
from tests.support.virtiodriver import INDIRECT, NEXT, WRITE


@pytest.fixture(scope="module")
def layout():
    return build_rings.abi()


def test_the_compiler_lays_structures_out_as_cffi_does(layout):
    """The module was compiled from the headers that `layout` was computed from."""
    names = ffi.list_types()[1]
    assert len(names) >= 5
    for name in names:
        assert ffi.sizeof(f"struct {name}") == layout.sizeof(f"struct {name}")


def test_the_stub_is_up_to_date(layout):
    assert (build_rings.HERE / "_rings.pyi").read_text() == build_rings.stub(layout)


def test_the_stub_names_what_the_module_has(layout):
    text = build_rings.stub(layout)
    assert set(re.findall(r"^    (?:def )?(pyvmm_\w+|PYVMM_\w+)[(:]", text, re.MULTILINE)) == {
        name for name in dir(lib) if name.lower().startswith("pyvmm_")
    }


def test_numbers_typed_in_c_are_those_of_the_specification():
    """What rings.c defines under a name that spec.py has."""
    text = (build_rings.HERE / "rings.c").read_text()
    numbers = dict(re.findall(r"^#define (DESC_F_\w+) (\d+)$", text, re.MULTILINE))
    assert len(numbers) == 3
    assert all(getattr(spec, name) == int(value) for name, value in numbers.items())
    assert "#define NO_INTERRUPT 1\n" in text and spec.AVAIL_F_NO_INTERRUPT == 1
    assert "#define NO_NOTIFY 1\n" in text and spec.USED_F_NO_NOTIFY == 1
    assert "(1ULL << 32)" in text and spec.CHAIN_LIMIT == 1 << 32


@pytest.mark.parametrize("part", build_rings.PARTS)
def test_the_c_files_stay_small(part):
    limit = 500 if part == "rings" else 400
    assert len((build_rings.HERE / f"{part}.c").read_text().splitlines()) < limit


# --- The same as the engine in Python --------------------------------------------------------------------------------

RAM = ((0, 0x8000), (0x8000, 0x4000), (0x10000, 0x4000))
"""Two regions without a gap, so that a buffer across the border is in none, and one behind a hole."""
DESCRIPTORS, DRIVER, DEVICE = 0x1000, 0x1800, 0x2000
TABLES = (0x3000, 0x3108, 0x8000, 0xBFF0, 0x13FE0)
"""Where indirect tables may lie; some reach beyond RAM if they are long."""

SAYS = {
    lib.PYVMM_AVAIL_JUMPS: "available index jumps",
    lib.PYVMM_HEAD_RANGE: r"head \d+ is made available in a table",
    lib.PYVMM_HEAD_IN_FLIGHT: "while it is in flight",
    lib.PYVMM_INDIRECT_REFUSED: "which was not negotiated",
    lib.PYVMM_INDIRECT_NESTED: "in an indirect table",
    lib.PYVMM_INDIRECT_NEXT: "with NEXT",
    lib.PYVMM_INDIRECT_LENGTH: "expected a multiple of 16",
    lib.PYVMM_INDIRECT_LONG: "bytes for a queue of",
    lib.PYVMM_INDIRECT_NOT_RAM: "indirect table at .* is not in RAM",
    lib.PYVMM_CHAIN_LOOPS: "or a loop",
    lib.PYVMM_CHAIN_LONG: "longer than 2",
    lib.PYVMM_BUFFER_NOT_RAM: "buffer at .* is not in RAM",
    lib.PYVMM_CHAIN_ORDER: "a readable buffer after a writable one",
    lib.PYVMM_NEXT_RANGE: "goes on at",
}


def kind_of(error):
    [kind] = [kind for kind, text in SAYS.items() if re.search(text, str(error))]
    return kind


def address(buffer):
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer)))


class Reference:
    """One queue in its own RAM, used by Python. What is done to it are the methods; chains are known by their heads."""

    def __init__(self, size, features, start):
        self.memory = GuestMemory.allocate(RAM)
        self.queue = queue = Virtqueue(0, 16)
        queue.size, queue.descriptors, queue.driver, queue.device = size, DESCRIPTORS, DRIVER, DEVICE
        for gpa in (DRIVER, DEVICE):
            self.memory.write(gpa, pack("<HH", 0, start))
        queue.enable(self.memory, features)
        queue._next_avail = queue._next_used = queue._notified = start
        self.chains = {}

    def place(self, at, length):
        for region in self.memory.regions:
            if 0 <= at - address(region.view) < region.length:
                return region.gpa + at - address(region.view), length
        raise AssertionError("not in RAM")

    def state(self):
        queue = self.queue
        positions = queue._next_avail, queue._next_used, queue._notified
        return (*positions, bytes(queue._in_flight), *(bytes(region.view) for region in self.memory.regions))

    def pop(self, limit, room):
        """Takes up to `limit`: [(head, readable, writable)], a buffer as (gpa, length); the error behind it or 0."""
        found = []
        try:
            while len(found) < limit and (chain := self.queue.pop()) is not None:
                self.chains[chain.head] = chain
                sides = chain.readable, chain.writable
                found.append((chain.head, *([self.place(address(view), len(view)) for view in side] for side in sides)))
        except QueueError as error:
            return found, kind_of(error)
        return found, 0

    def unpop(self, heads):
        for head in heads:
            del self.chains[head]
            self.queue._in_flight[head] = 0
        self.queue._next_avail = (self.queue._next_avail - len(heads)) & 0xFFFF

    def push(self, elements):
        for head, length in elements:
            self.queue.push(self.chains.pop(head), length)

    def wants_interrupt(self):
        return self.queue.wants_interrupt()

    def suppress(self):
        self.queue.suppress()

    def listen(self):
        return self.queue.listen()

    def close(self):
        self.chains.clear()
        self.queue.disable()
        self.memory.close()


class Subject(Reference):
    """The same, used by C and Python in turns, as `turn()` says. `by_c` counts what C did."""

    def __init__(self, turn, *how):
        super().__init__(*how)
        self.turn = turn
        self.by_c = Counter()

    def in_c(self, name, *arguments):
        self.by_c[name] += 1
        native = native_queue(self.queue)
        result = getattr(lib, f"pyvmm_{name}")(native.enter(), *arguments)
        native.leave()
        return result

    @property
    def errors(self):
        return list(native_queue(self.queue).c.errors)

    def pop(self, limit, room):
        chains, iov = ffi.new("struct pyvmm_chain[]", limit), ffi.new("struct iovec[]", room)
        found = []
        while len(found) < limit and self.turn():
            count = self.in_c("pop", chains, limit - len(found), iov, room)
            if count == -lib.PYVMM_NO_ROOM:
                self.by_c["no room"] += 1
                break
            if count <= 0:
                return found, -count
            assert chains[0].first == 0
            for chain in chains[0:count]:
                end = chain.first + chain.readable + chain.writable
                assert end <= room
                buffers = [self.place(int(ffi.cast("uintptr_t", io.iov_base)), io.iov_len) for io in iov[0:end]]
                readable, writable = buffers[chain.first :][: chain.readable], buffers[end - chain.writable :]
                assert sum(length for _, length in readable) == chain.readable_length
                assert sum(length for _, length in writable) == chain.writable_length
                found.append((chain.head, readable, writable))
                self.chains[chain.head] = None
        more, kind = super().pop(limit - len(found), room) if len(found) < limit else ([], 0)
        return found + more, kind

    def unpop(self, heads):
        chains = ffi.new("struct pyvmm_chain[]", [{"head": head} for head in heads])
        self.in_c("unpop", chains, len(heads))
        for head in heads:
            del self.chains[head]

    def push(self, elements):
        if not self.turn() and all(self.chains[head] is not None for head, _ in elements):
            super().push(elements)
            return
        for head, _ in elements:
            del self.chains[head]
        self.in_c("push", ffi.new("struct pyvmm_used[]", elements), len(elements))

    def wants_interrupt(self):
        return bool(self.in_c("wants_interrupt")) if self.turn() else super().wants_interrupt()

    def suppress(self):
        if self.turn():
            self.in_c("suppress")
        else:
            super().suppress()

    def listen(self):
        return bool(self.in_c("listen")) if self.turn() else super().listen()


class Scribbler:
    """A driver that writes mostly sense, the same for two queues."""

    def __init__(self, rng, sides, size, start):
        self.rng, self.sides, self.size, self.available = rng, sides, size, start

    def write(self, gpa, data):
        for side in self.sides:
            side.memory.write(gpa, data)

    def rarely(self):
        return self.rng.random() < 0.02

    def descriptor(self, inside=False):
        rng = self.rng
        if rng.random() < (0.06 if inside else 0.15):
            entries = rng.choice((1, 1, 2, 2, self.size, self.size + 1 if self.rarely() else 1))
            gpa, length = rng.choice(TABLES), 16 * entries
            if self.rarely():
                length = rng.choice((0, 8, 24, 1 << 31))
            flags = INDIRECT | (NEXT if self.rarely() else 0) | (WRITE if rng.random() < 0.2 else 0)
        else:
            gpa = rng.choice((0x4000, 0x7FF0, 0x8000, 0xBF00, 0x10000, 0x13FF0))
            length = rng.choice((1, 2, 8, 15, 16, 16, 0))
            if self.rarely():
                length = rng.choice((17, 0x4000, 0xFFFFFFFF, 0xFFFFFFFF))
            if self.rarely():
                gpa = rng.choice((0xC000, 0x14000, 1 << 40, (1 << 64) - 8))
            flags = (NEXT if rng.random() < 0.4 else 0) | (WRITE if rng.random() < 0.5 else 0)
        following = rng.randrange(self.size) if not self.rarely() else rng.choice((self.size, 0xFFFF))
        return pack("<QIHH", gpa, length, flags, following)

    def step(self):
        """Some descriptors, tables and heads anew."""
        rng = self.rng
        for _ in range(rng.randrange(4)):
            self.write(DESCRIPTORS + 16 * rng.randrange(self.size), self.descriptor())
        for gpa in TABLES:
            if rng.random() < 0.3:
                self.write(gpa, self.descriptor(inside=True))
                if gpa != 0xBFF0:
                    self.write(gpa + 16, self.descriptor(inside=True))
        self.write(DRIVER + 4 + 2 * self.size, pack("<H", (self.available + rng.randrange(-3, 4)) & 0xFFFF))
        self.write(DRIVER, pack("<H", rng.choice((0, 1, 0xFFFE))))
        queue = self.sides[0].queue
        idle = [head for head in range(self.size) if not queue._in_flight[head]]
        for _ in range(rng.randrange(3)):
            if (self.available - queue._next_avail) & 0xFFFF < len(idle):
                head = idle.pop(rng.randrange(len(idle)))
                if self.rarely():
                    head = rng.choice((self.size, 0xFFFF, *range(self.size)))
                self.write(DRIVER + 4 + 2 * (self.available % self.size), pack("<H", head))
                self.available = (self.available + 1) & 0xFFFF
        shown = self.available if not self.rarely() else rng.randrange(1 << 16)
        self.write(DRIVER + 2, pack("<H", shown))


def play(rng, steps, turn):
    """Do the same to two queues, one of them used by C: everything that can be seen is the same at each step."""
    size = 1 << rng.randrange(5)
    start = rng.choice((0, 0xFFFE, rng.randrange(1 << 16)))
    features = rng.choice((0, 1)) << spec.F_RING_EVENT_IDX | rng.choice((0, 1, 1)) << spec.F_RING_INDIRECT_DESC
    reference, subject = Reference(size, features, start), Subject(turn, size, features, start)
    driver = Scribbler(rng, (reference, subject), size, start)
    errors, in_c = Counter(), Counter()
    try:
        for _ in range(steps):
            driver.step()
            limit, room = rng.randrange(1, 2 * size + 1), rng.choice((1, 2, 5, 64, 64, 64))
            found, error = reference.pop(limit, room)
            assert subject.pop(limit, room) == (found, error)
            errors[error] += 1
            if found and rng.random() < 0.2:
                heads = [head for head, *_ in found[-rng.randrange(1, len(found) + 1) :]]
                reference.unpop(heads)
                subject.unpop(heads)
            done = rng.sample(sorted(reference.chains), rng.randrange(len(reference.chains) + 1))
            if done:
                elements = [(head, rng.randrange(1 << 32)) for head in done]
                reference.push(elements)
                subject.push(elements)
            for name in rng.sample(("suppress", "listen", "wants_interrupt"), rng.randrange(3)):
                assert getattr(reference, name)() == getattr(subject, name)(), name
            assert reference.state() == subject.state()
            if error:  # it goes on being wrong, so another driver begins
                break
        in_c.update(dict(enumerate(subject.errors)))
        return errors, in_c, subject.by_c
    finally:
        reference.close()
        subject.close()


@pytest.mark.parametrize("mixed", [False, True], ids=["all in C", "in turns with Python"])
def test_random_and_hostile_rings_are_as_in_python(mixed):
    """Each kind of error was met by C itself, and each function was called."""
    errors, in_c, called = Counter(), Counter(), Counter()
    for seed in range(1500):
        rng, coin = random.Random(seed), random.Random(~seed)
        counts = play(rng, 40, (lambda coin=coin: coin.random() < 0.5) if mixed else lambda: True)
        for total, count in zip((errors, in_c, called), counts, strict=True):
            total.update(count)
    assert not [kind for kind in SAYS if not in_c[kind]], in_c
    assert errors[0] > 1000
    assert all(called[name] for name in ("pop", "unpop", "push", "wants_interrupt", "suppress", "listen", "no room"))


G4 = 1 << 32


@pytest.mark.parametrize(
    ("descriptors", "available", "kind"),
    [
        ([(0x4000, 16, 0, 0)], 4, 0),
        ([(0x4000, 16, 0, 0)], 5, lib.PYVMM_AVAIL_JUMPS),
        ([(0x4000, 2, NEXT, 1), (0x4000, G4 - 2, 0, 0)], 1, lib.PYVMM_BUFFER_NOT_RAM),
        ([(0x4000, 2, NEXT, 1), (0x4000, G4 - 1, 0, 0)], 1, lib.PYVMM_CHAIN_LONG),
        ([(0x7FF0, 16, 0, 0)], 1, 0),
        ([(0x7FF0, 17, 0, 0)], 1, lib.PYVMM_BUFFER_NOT_RAM),
        ([(0x13FFF, 1, 0, 0)], 1, 0),
        ([(0x14000, 1, 0, 0)], 1, lib.PYVMM_BUFFER_NOT_RAM),
        ([(0x14000, 0, 0, 0)], 1, 0),
        ([((1 << 64) - 1, 2, 0, 0)], 1, lib.PYVMM_BUFFER_NOT_RAM),
        ([(0x4000, 1, NEXT, 3), *[(0, 0, 0, 0)] * 3], 1, 0),
        ([(0x4000, 1, NEXT, 4), *[(0, 0, 0, 0)] * 3], 1, lib.PYVMM_NEXT_RANGE),
        ([(0x4000, 1, NEXT, 1), (0x4000, 1, NEXT, 2), (0x4000, 1, NEXT, 3), (0x4000, 1, 0, 0)], 1, 0),
        ([(0x4000, 1, NEXT, 1), (0x4000, 1, NEXT, 2), (0x4000, 1, NEXT, 3), (0, 0, NEXT, 0)], 1, lib.PYVMM_CHAIN_LOOPS),
        ([(0x3000, 16 * 4, INDIRECT, 0)], 1, 0),
        ([(0x3000, 16 * 5, INDIRECT, 0)], 1, lib.PYVMM_INDIRECT_LONG),
        ([(0x7FF0, 16, INDIRECT, 0)], 1, 0),
        ([(0x7FF8, 16, INDIRECT, 0)], 1, lib.PYVMM_INDIRECT_NOT_RAM),
    ],
)
def test_the_edges_are_where_python_has_them(descriptors, available, kind):
    """Heads are 0, 1, 2, 3; what is not written is 0, a descriptor of nothing."""
    sides = [make(4, 1 << spec.F_RING_INDIRECT_DESC, 0) for make in (Reference, partial(Subject, lambda: True))]
    try:
        found = []
        for side in sides:
            side.memory.write(DESCRIPTORS, b"".join(pack("<QIHH", *each) for each in descriptors))
            side.memory.write(DRIVER, pack("<6H", 0, available, 0, 1, 2, 3))
            found.append(side.pop(1, 64))
        assert found[0] == found[1] and found[0][1] == kind and sides[0].state() == sides[1].state()
    finally:
        for side in sides:
            side.close()


# --- By itself, under the sanitizers ---------------------------------------------------------------------------------

ASAN = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
TSAN = ("-fsanitize=thread", "-Wno-tsan")  # gcc's does not know fences, and acquire and release are enough for it


def run(*command, seconds=60):
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=seconds)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.mark.needs("gcc")
@pytest.mark.parametrize(
    ("options", "rounds"),
    [(ASAN, ("random 5000", "threads 20000")), (TSAN, ("threads 5000",)), (("-O2",), ("threads 30000",))],
    ids=["address and undefined", "thread", "none"],
)
def test_the_c_files_by_themselves(tmp_path, options, rounds):
    run(*fuzz.compiled("gcc", tmp_path / "driver", *options))
    for round in rounds:
        assert run(tmp_path / "driver", *round.split()).stdout == "ok\n"


@pytest.mark.needs("gcc", "clang")
def test_nothing_is_found_by_a_fuzzer_in_some_seconds(tmp_path):
    """`make fuzz-native` is the same for as long as one likes."""
    fuzz.main(["--seconds", "3", "--folder", str(tmp_path)])
