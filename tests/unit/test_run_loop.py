"""The run loop in C, on pages that these tests fill: no /dev/kvm. What it does by itself, Python does the same.

tests/native/run_loop_driver.c has its every branch under sanitizers, tests/kvm/test_run_loop.py guests on both paths.
"""

from __future__ import annotations

import errno
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyvmm import hot, layout
from pyvmm._native import build_kvm
from pyvmm._native._kvm import lib
from pyvmm.bus import Bus
from pyvmm.devices.debugcon import DebugCon
from pyvmm.kvm import hot as native_hot
from pyvmm.kvm.exits import Exit, Mmio, Pio
from pyvmm.kvm.hot import NativeHot
from tests.support.hotrig import CMOS, COM1, POST_CODE, VIRTIO, HotRig, PlainRig

NATIVE = Path(__file__).parents[1] / "native"
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]

RBR = THR = 0
IER, IIR, LCR, MCR, LSR = 1, 2, 3, 4, 5
ETBEI, DLAB, BREAK, LOOP, OUT2 = 0x02, 0x80, 0x40, 0x10, 0x08


def build(tmp_path: Path, compiler: str, source: str, *options: str) -> Path:
    program = tmp_path / "program"
    macros = [f"-D{name}={value}" for name, value in build_kvm.macros().items()]
    sources = [str(NATIVE / source), *(str(build_kvm.HERE / name) for name in build_kvm.SOURCES)]
    command = [compiler, "-std=gnu11", "-g", "-O1", *macros, *WARNINGS, *options, "-I", str(build_kvm.HERE)]
    result = subprocess.run(
        [*command, *sources, "-o", str(program), "-pthread"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    return program


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_every_branch_under_sanitizers(tmp_path, sanitizer):
    # pyvmm_kick, in the same file as pyvmm_run, has a fence, which TSan does not know and nothing here needs.
    options = ["-fno-sanitize-recover=all"] if "address" in sanitizer else ["-Wno-error=tsan"]
    program = build(tmp_path, "gcc", "run_loop_driver.c", f"-fsanitize={sanitizer}", *options)
    result = subprocess.run([str(program)], capture_output=True, text=True, timeout=90)
    assert (result.returncode, result.stdout, result.stderr) == (0, "ok\n", "")


@pytest.mark.needs("clang")
def test_exits_that_a_fuzzer_makes_up(tmp_path):
    program = build(tmp_path, "clang", "run_loop_fuzz.c", "-fsanitize=fuzzer,address,undefined")
    options = ["-runs=100000", "-max_len=400", "-seed=1"]
    result = subprocess.run([str(program), *options], capture_output=True, text=True, timeout=90, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-4000:]


def test_the_loop_keeps_within_its_bounds():
    """It is small, and has no memory of its own: no function's or file's variable outlives a call."""
    text = (build_kvm.HERE / "run_loop.c").read_text()
    assert text.count("\n") < 500
    assert "malloc" not in text and "calloc" not in text
    for line in text.splitlines():
        if line.startswith("static ") or line.lstrip().startswith("static "):
            assert "(" in line, line


def test_actions_have_the_same_numbers_on_both_sides():
    for name in ("POST", "SHADOW", "CLEAR", "IGNORE"):
        assert getattr(hot, name) == getattr(lib, f"PYVMM_{name}")


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[HotRig]:
    made = HotRig(monkeypatch)
    yield made
    made.close()
    assert made.failures == []


def out(rig: HotRig | PlainRig, port: int, *values: int) -> None:
    for value in values:
        rig.access(True, True, port, 1, bytes((value,)))


def inb(rig: HotRig | PlainRig, port: int) -> int:
    return rig.access(True, False, port, 1, b"\0")[0]


# --- The same answers --------------------------------------------------------------------------------------------


def random_access(draw: random.Random) -> tuple[bool, bool, int, int, bytes]:
    """is_port, is_write, address, size and data, mostly of what C may deal with."""
    is_write = draw.random() < 0.6
    if draw.random() < 0.2:
        address = VIRTIO + draw.choice((0x60, 0x60, 0x64, 0x64, 0x70, 0x62, 0x58, 0x100))
        size = draw.choice((4, 4, 4, 4, 1, 2, 8))
        return False, is_write, address, size, draw.choice((0, 1, 2, 3, 0xFFFFFFFF)).to_bytes(8, "little")[:size]
    port = draw.choice(
        (
            *[COM1 + THR] * 6,
            *[COM1 + LSR] * 5,
            *(COM1 + offset for offset in range(8)),
            *(CMOS, CMOS, CMOS + 1, CMOS + 1),
            *(layout.DEBUG_CONSOLE_PORT, layout.FIRMWARE_DEBUG_PORT, POST_CODE, POST_CODE, 0x81, 0x3F7),
        )
    )
    size = draw.choice((1, 1, 1, 1, 1, 1, 1, 2, 4))
    count = draw.choice((1, 1, 1, 1, 1, 1, 1, 1, 3, 20)) if is_write else draw.choice((1, 1, 1, 1, 3))
    if port - COM1 in (IER, LCR, MCR) and size == 1:
        value = draw.choice((0, 1, ETBEI, 3, DLAB, BREAK, LOOP, OUT2, draw.randrange(256)))
        return True, is_write, port, 1, bytes((value,)) * count
    return True, is_write, port, size, draw.randbytes(size * count)


@pytest.mark.parametrize("seed", range(12))
def test_random_accesses_have_the_plain_paths_answers(monkeypatch, rig, seed):
    """And its output, device state, interrupts, counts and history. The host types, resets and signals meanwhile."""
    draw = random.Random(seed)
    plain = PlainRig()
    for turn in range(2500):
        access = random_access(draw)
        got, expected = rig.access(*access), plain.access(*access)
        assert got == expected, (turn, access)
        event = draw.random()
        if event < 0.02:
            text = draw.randbytes(draw.choice((1, 3, 20)))
            assert rig.machine.serial.receive(text) == plain.machine.serial.receive(text)
        elif event < 0.03:
            for one in (rig, plain):
                one.machine.serial.receive_break()
        elif event < 0.035:
            for one in (rig, plain):
                with one.machine.serial.lock:
                    one.machine.serial.reset()
        elif event < 0.06:
            for one in (rig, plain):
                one.transport.used_buffer(0)
        if draw.random() < 0.02:
            rig.hot.drain()
            assert rig.state() == plain.state(), turn
    rig.hot.drain()
    assert rig.state() == plain.state()
    assert rig.served > 200, "C had its part in it"


@pytest.mark.parametrize("seed", range(3))
def test_observers_see_the_accesses_of_the_plain_path_in_their_order(rig, seed):
    draw = random.Random(100 + seed)
    plain = PlainRig()
    seen: dict[str, list[str]] = {"plain": [], "hot": []}

    class Watcher:
        at_once = False

        def __init__(self, who: str) -> None:
            self.seen = seen[who]

        def on_exit(self, vcpu: int, exit: Exit) -> None:
            if isinstance(exit, Pio | Mmio):
                self.seen.append(exit.describe())

        def on_served(self, vcpu: int, exit: Exit, tsc: int, rip: int) -> None:
            assert tsc
            self.on_exit(vcpu, exit)

    plain.loop.observe(Watcher("plain"))  # type: ignore[arg-type]
    rig.loop.observe(Watcher("hot"))  # type: ignore[arg-type]
    for _ in range(1500):
        access = random_access(draw)
        rig.access(*access)
        plain.access(*access)
        if rig.vcpu._context.logged - rig.vcpu._context.told > lib.PYVMM_LOG - 2:
            inb(rig, 0x3F7)  # the run loop itself would come back here
            inb(plain, 0x3F7)
    inb(rig, 0x3F7)
    inb(plain, 0x3F7)
    assert seen["hot"] == seen["plain"]
    assert rig.served > 100


def test_a_full_log_comes_back_to_python():
    """In the driver's words: pyvmm_vcpu_run says PYVMM_NO_EXIT; `_attend` tells, and runs on."""
    assert lib.PYVMM_NO_EXIT > lib.PYVMM_MMIO_READ


# --- What is posted, and when it is done ---------------------------------------------------------------------------


def test_characters_leave_in_one_piece_when_somebody_asks(rig):
    pieces: list[bytes] = []
    rig.machine.serial._output = pieces.append
    out(rig, COM1, *b"hello")
    assert pieces == [] and rig.served == 5
    assert inb(rig, COM1 + IIR) == 1
    assert pieces == [b"hello"]


@pytest.mark.parametrize("how", ["another register", "another device", "the host", "a string", "a pause"])
def test_everything_that_comes_after_a_posted_write_finds_it_done(rig, how):
    out(rig, COM1, *b"abc")
    assert rig.output == b""
    if how == "another register":
        inb(rig, COM1 + MCR)
    elif how == "another device":
        inb(rig, layout.I8042_COMMAND_PORT)
    elif how == "the host":
        rig.machine.serial.receive(b"x")
    elif how == "a string":
        rig.access(True, True, COM1, 2, b"defg")
        assert rig.output.startswith(b"abcd")
        return
    else:
        rig.machine.hot.drain()
    assert rig.output == b"abc"


def test_what_goes_to_three_consoles_keeps_its_order(rig):
    ports = (COM1, layout.DEBUG_CONSOLE_PORT, layout.FIRMWARE_DEBUG_PORT)
    for index in range(60):
        out(rig, ports[index * 7 % 3], 32 + index)
    assert rig.served == 60
    rig.hot.drain()
    assert rig.output == bytes(range(32, 92))


def test_a_full_ring_is_an_exit_and_nothing_is_lost(rig):
    text = bytes(i % 251 for i in range(3 * lib.PYVMM_RING))
    out(rig, COM1, *text)
    assert len(text) - rig.served == 2, "each time that it was full, one"
    rig.hot.drain()
    assert rig.output == text


@pytest.mark.parametrize(
    ("register", "value"), [(IER, ETBEI), (LCR, DLAB), (LCR, BREAK), (MCR, LOOP)], ids=["THRI", "DLAB", "break", "loop"]
)
def test_a_character_is_posted_only_while_nothing_waits_for_it(rig, register, value):
    out(rig, COM1, *b"a")
    assert rig.served == 1
    out(rig, COM1 + register, value)
    assert rig.output == b"a"
    before = rig.served
    out(rig, COM1, *b"b")
    assert rig.served == before
    out(rig, COM1 + register, 0)
    out(rig, COM1, *b"c")
    assert rig.served == before + 1
    rig.hot.drain()
    assert rig.output == (b"abc" if register == IER else b"ac")


@pytest.mark.parametrize(
    ("register", "value"),
    [(IER, ETBEI), (LCR, DLAB), (LCR, BREAK), (MCR, OUT2 | LOOP)],
    ids=["THRI", "DLAB", "break", "loop"],
)
def test_what_another_processor_posts_meanwhile_means_what_it_meant_then(rig, register, value):
    """It has passed the UART's state before that was changed, and comes into the ring after the lock was taken."""
    serial = rig.machine.serial
    out(rig, COM1 + MCR, OUT2)
    before = rig.served
    with serial.lock:
        out(rig, COM1, *b"xy")
        assert rig.served == before + 2 and rig.output == b""
        serial.write(register, 1, value)
        assert rig.output == b"xy"
    assert serial._lsr == 0x60 and serial._dll == 1, "neither looped back nor a divisor"
    # The interrupt that comes of being enabled, and none of having sent.
    assert rig.interrupts == ([(layout.SERIAL_IRQ, True)] if register == IER else [])


def test_line_status_is_shown_while_it_says_no_error_and_nobody_counts_polls(rig):
    serial = rig.machine.serial
    assert inb(rig, COM1 + LSR) == 0x60 and rig.served == 1
    serial.receive(b"x")  # its far end waits for the guest to poll
    for _ in range(7):
        assert inb(rig, COM1 + LSR) == 0x60
    assert rig.served == 1
    assert inb(rig, COM1 + LSR) == 0x61 and rig.served == 1
    assert inb(rig, COM1 + LSR) == 0x61 and rig.served == 2
    serial.receive_break()
    assert inb(rig, COM1) == ord("x")
    before = rig.served
    assert inb(rig, COM1 + LSR) & 0x10 and rig.served == before, "reading it ends the error"
    assert inb(rig, COM1 + LSR) == 0x61 and rig.served == before + 1


def test_a_restored_device_allows_what_its_state_allows(rig, monkeypatch):
    out(rig, COM1 + IER, ETBEI)
    out(rig, COM1 + LCR, 3)
    state = rig.machine.serial.save()
    rig.machine.serial.reset()
    out(rig, COM1, *b"a")
    assert rig.served == 1
    rig.machine.serial.restore(state)
    out(rig, COM1, *b"b")
    assert rig.served == 1


def test_without_a_thread_that_flushes_nothing_is_posted_but_the_first_write_starts_it(monkeypatch):
    made = HotRig(monkeypatch, flushing=False)
    try:
        out(made, COM1, *b"a")
        assert made.served == 0 and made.output == b"a" and made.hot.memory.flushed
        assert [thread.name for thread in threading.enumerate()].count("flusher") == 1
        out(made, COM1, *b"b")
        assert made.served == 1
        deadline = time.monotonic() + 5
        while made.output != b"ab" and time.monotonic() < deadline:
            time.sleep(0.001)
        assert made.output == b"ab", "nobody has asked: the timer has"
    finally:
        made.close()
    assert all(thread.name != "flusher" for thread in threading.enumerate())


def test_a_posted_write_waits_ten_milliseconds_at_most(monkeypatch):
    """The shortest of many waits: this machine has other work too."""
    made = HotRig(monkeypatch, flushing=False)
    done: list[float] = []
    made.machine.serial._output = lambda data: done.append(time.monotonic())
    try:
        out(made, COM1, 1)
        waits = []
        for _ in range(21):
            done.clear()
            began = time.monotonic()
            out(made, COM1, 2)
            while not done and time.monotonic() < began + 5:
                time.sleep(0.0002)
            waits.append(done[0] - began)
        assert 0.001 < min(waits) < 0.01, "it does wait for more"
    finally:
        made.close()


@pytest.mark.parametrize("lacking", ["thread", "descriptor"])
def test_a_host_without_room_for_what_flushes_is_served_as_before(monkeypatch, lacking):
    made = HotRig(monkeypatch, flushing=False)
    if lacking == "thread":
        monkeypatch.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no room")))
    else:
        poor = SimpleNamespace(**{name: getattr(lib, name) for name in dir(lib)})
        poor.pyvmm_timer = lambda: -errno.EMFILE
        monkeypatch.setattr(native_hot, "lib", poor)
    try:
        out(made, COM1, *b"abc")
        assert (made.served, made.output) == (0, b"abc")
    finally:
        made.close()


def test_a_device_that_fails_on_a_posted_write_ends_the_run(monkeypatch):
    made = HotRig(monkeypatch, flushing=False)
    out(made, COM1, 1)

    def broken(data: bytes) -> None:
        raise ValueError("broken")

    made.machine.serial._output = broken
    out(made, COM1, 2)
    deadline = time.monotonic() + 5
    while not made.failures and time.monotonic() < deadline:
        time.sleep(0.001)
    made.machine.serial._output = made.output.extend
    made.close()
    assert [str(failure) for failure in made.failures] == ["broken"]
    assert made.machine.serial.lock._lock.acquire(timeout=1), "the lock was given back"  # type: ignore[attr-defined]


# --- What comes and goes -------------------------------------------------------------------------------------------


def test_a_device_that_was_detached_is_served_no_more(rig):
    ports = rig.machine.ports
    out(rig, COM1, *b"a")
    ports.detach(COM1)
    out(rig, COM1, *b"b")
    assert rig.served == 1 and ports.unclaimed_writes == 1
    ports.attach(0x2F8, 8, rig.machine.serial)
    out(rig, 0x2F8, *b"c")
    assert rig.served == 2
    rig.hot.drain()
    assert rig.output == b"ac"


def test_writes_of_post_codes_are_counted_until_somebody_claims_the_port(rig):
    ports = rig.machine.ports
    out(rig, POST_CODE, 1, 2, 3)
    assert (rig.served, ports.unclaimed_writes) == (3, 3)
    assert inb(rig, POST_CODE) == 0xFF
    got: list[bytes] = []
    ports.attach(POST_CODE, 1, DebugCon(got.append))
    out(rig, POST_CODE, 65)
    assert (got, rig.served, ports.unclaimed_writes) == ([b"A"], 3, 3)
    ports.detach(POST_CODE)
    out(rig, POST_CODE, 4)
    assert (rig.served, ports.unclaimed_writes) == (4, 4)


def test_who_asks_to_be_told_at_once_is_told_at_once(rig):
    seen: list[int] = []

    class Hooks:
        at_once = True

        def on_exit(self, vcpu: int, exit: Exit) -> None:
            seen.append(len(rig.output))

    out(rig, COM1, *b"a")
    rig.loop.observe(Hooks())  # type: ignore[arg-type]
    out(rig, COM1, *b"bc")
    assert rig.served == 1 and seen == [2, 3]


def test_windows_by_themselves():
    """The pure Python window, which devices have by default, has a slot that changes in one step."""
    window = hot.Window(0x60, 8, 4)
    window.change(set=3)
    window.change(1, 4)
    window.on_read(0x60, hot.SHADOW)
    window.on_write(0x64, hot.CLEAR)
    assert window.slot == 6
    native = NativeHot(lambda error: None).window(0x60, 8, 4)
    native.change(set=3)
    native.change(1, 4)
    assert native.slot == 6


def test_a_bus_without_a_table_ignores_by_counting():
    bus = Bus("port", 1 << 16)
    bus.ignore(0x80, hot.Hot().window(0, 1, 1))
    bus.write(0x80, 1, 5)
    assert bus.unclaimed_writes == 1
