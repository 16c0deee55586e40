"""Reading along on the console: real messages of Linux are known, other text is not, and nothing grows."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.debug import consolewatch
from pyvmm.debug.consolewatch import KEPT_COMPLAINTS, KEPT_LINES, LINE, SHOWN, ConsoleWatch, without_stamp
from pyvmm.debug.hints import HINTS

BANNER = "Linux version 6.1.0 (builder@host) (gcc 12.2.0) #1 SMP\n"

NO_ROOT = """\
VFS: Cannot open root device "(null)" or unknown-block(0,0): error -6
Please append a correct "root=" boot option; here are the available partitions:
Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)
CPU: 0 PID: 1 Comm: swapper/0 Not tainted 6.1.0 #1
Call Trace:
 <TASK>
 dump_stack_lvl+0x33/0x42
 panic+0xf6/0x2a6
 mount_block_root+0x14d/0x1ee
Kernel Offset: disabled
Rebooting in 1 seconds..
"""

OOPS = """\
BUG: kernel NULL pointer dereference, address: 0000000000000000
#PF: supervisor write access in kernel mode
#PF: error_code(0x0002) - not-present page
PGD 0 P4D 0
Oops: 0002 [#1] PREEMPT SMP NOPTI
CPU: 1 PID: 87 Comm: insmod Tainted: G           O      6.1.0 #1
RIP: 0010:broken_init+0x5/0x1000 [broken]
Call Trace:
 do_one_initcall+0x41/0x1c0
---[ end trace 0000000000000000 ]---
RIP: 0010:broken_init+0x5/0x1000 [broken]
"""

WARNING = """\
------------[ cut here ]------------
refcount_t: underflow; use-after-free.
WARNING: CPU: 0 PID: 1 at lib/refcount.c:28 refcount_warn_saturate+0xba/0x110
Modules linked in:
---[ end trace 0000000000000000 ]---
"""


def stamped(text: str, caller: str = "") -> str:
    return "".join(f"[{n:5}.{n * 7919 % 10**6:06}]{caller} {line}\n" for n, line in enumerate(text.splitlines()))


def heard(*texts: str, end: bool = True) -> ConsoleWatch:
    watch = ConsoleWatch()
    for text in texts:
        for byte in text.replace("\n", "\r\n").encode():
            watch.feed(bytes([byte]))
        watch.scan()
    watch.scan(end)
    return watch


@pytest.mark.parametrize("dress", [str, stamped, lambda text: stamped(text, "[    T1]")])
def test_a_panic_is_known_and_stands(dress):
    watch = heard(dress(BANNER + NO_ROOT))
    assert watch.panic is not None
    assert watch.panic.text == "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"
    assert [complaint.kind for complaint in watch.complaints] == ["panic"]
    assert " panic+0xf6/0x2a6" in watch.complaints[0].lines
    assert [hint.message for hint, _ in watch.hints] == [
        b"VFS: Cannot open root device",
        b"VFS: Unable to mount root fs",
    ]


@pytest.mark.parametrize("dress", [str, stamped])
def test_an_oops_is_one_complaint_and_ends_with_its_trace(dress):
    watch = heard(dress(BANNER + OOPS + "all is well\n"))
    assert watch.counts == {"oops": 1} and watch.panic is None
    lines = watch.complaints[0].lines
    assert lines[0].startswith("BUG: kernel NULL pointer") and lines[-1].startswith("---[ end trace")


@pytest.mark.parametrize("dress", [str, stamped])
def test_a_warning_keeps_the_text_that_comes_before_its_name(dress):
    watch = heard(dress(BANNER + WARNING))
    assert watch.counts == {"warn": 1}
    assert watch.complaints[0].lines[:2] == [
        "WARNING: CPU: 0 PID: 1 at lib/refcount.c:28 refcount_warn_saturate+0xba/0x110",
        "refcount_t: underflow; use-after-free.",
    ]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP", "oops"),
        ("invalid opcode: 0000 [#1] PREEMPT", "oops"),
        ("kernel BUG at mm/slub.c:435!", "oops"),
        ("BUG: unable to handle page fault for address: ffffc90000000000", "oops"),
        ("watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [swapper/0:1]", "oops"),
        ("PANIC: double fault, error_code: 0x0", "oops"),
        ("WARNING: possible recursive locking detected", "warn"),
        ("rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", "warn"),
        ("INFO: task init:1 blocked for more than 120 seconds.", "warn"),
        ("Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100", "panic"),
        ("WARNING: apt does not have a stable CLI interface.", None),
        ("issue [#12] fixed", None),
        ("traps: init[1] general protection fault ip:401000 sp:7ffe error:0", None),
        ("printk: console [ttyS0] enabled", None),
        ('echo "Kernel panic - not syncing"', None),
    ],
)
@pytest.mark.parametrize("dress", [str, stamped])
def test_kinds_of_lines(line, kind, dress):
    watch = heard(dress(BANNER + line + "\n"))
    assert watch.counts == ({kind: 1} if kind else {})


def test_a_program_cannot_panic_a_kernel_that_stamps_its_lines():
    watch = heard(stamped(BANNER), NO_ROOT, OOPS)
    assert watch.panic is None and not watch.counts and not watch.hints and watch.user_space


def test_output_of_a_program_withdraws_a_panic():
    assert heard(stamped(BANNER + NO_ROOT), "/ # ls\n").panic is None
    assert heard(stamped(BANNER + NO_ROOT), "/ # ", "").panic is None, "a prompt has no end of line"


def test_without_stamps_much_output_withdraws_a_panic():
    watch = heard(BANNER + NO_ROOT + "still here\n" * 200)
    assert watch.panic is None and watch.counts == {"panic": 1}


def test_a_panic_behind_a_prompt():
    watch = heard(stamped(BANNER), "/ # [   12.345678] Kernel panic - not syncing: sysrq triggered crash\n")
    assert watch.panic is not None


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ((stamped(BANNER + "Run /init as init process\n"),), False),
        ((stamped(BANNER + "Run /init as init process\n"), "hello\n"), True),
        ((stamped(BANNER), "hello\n"), True),
        ((stamped(BANNER), "/ # ", ""), True),
        ((stamped(BANNER), "[    1.0", "00000] tsc: calibrated\n"), False),
        ((BANNER + "Memory: 1000K\n",), False),
        ((BANNER + "Run /init as init process\n",), False),
        ((BANNER + "Run /init as init process\nhello\n",), True),
        (("Decompressing Linux... Parsing ELF... done.\nBooting the kernel.\n",), False),
        (("hello\n",), True),
        (("\r\n\n",), False),
        ((stamped("sysfs: cannot create\n"),), False),
    ],
)
def test_when_a_program_has_written(texts, expected):
    assert heard(*texts, end=False).user_space is expected


def test_waiting_is_the_last_word_only():
    waiting = stamped(BANNER + "Waiting for root device /dev/vda...\n")
    assert heard(waiting).waiting is not None
    assert heard(waiting + "[   99.000000] virtio_blk virtio0: [vda] 2048 512-byte logical blocks\n").waiting is None


def test_kaslr_is_read():
    assert heard(stamped("Kernel Offset: 0x1c000000 from 0xffffffff81000000\n")).kernel_offset == 0x1C000000
    assert heard(stamped("Kernel Offset: 0xnonsense from\n")).kernel_offset == 0


def test_every_hint_is_found_by_its_message():
    for hint in HINTS:
        line = f"{hint.also.decode()} {hint.message.decode()} 1\n" if hint.also else f"x {hint.message.decode()}\n"
        assert hint in [found for found, _ in heard(stamped(BANNER + line)).hints], hint.message


def test_a_hint_that_needs_more_words_is_not_given_without():
    assert not heard(stamped(BANNER + "firmware: load failed (error -2)\n")).hints


def test_what_is_shown_has_no_escape_sequences():
    watch = heard(BANNER + "Kernel panic - not syncing: \x1b]0;evil\x07\x1b[2J\tfoo\n")
    assert watch.panic is not None
    assert watch.panic.text == "Kernel panic - not syncing: ?]0;evil??[2J foo"


def test_everything_kept_is_bounded():
    watch = ConsoleWatch()
    for n in range(50):
        watch.feed(f"Oops: 0000 [#{n}] {'x' * 5000}\n".encode() + b"y\n" * 100 + b"---[ end trace\n")
    watch.feed(b"z" * (1 << 20))
    watch.scan()
    assert watch.counts["oops"] == 50 and len(watch.complaints) == KEPT_COMPLAINTS
    assert all(len(complaint.lines) <= KEPT_LINES for complaint in watch.complaints)
    assert all(len(line) <= SHOWN for complaint in watch.complaints for line in complaint.lines)
    assert len(watch._tail) <= LINE
    for _ in range(10_000):
        watch.feed(b"w")
    assert len(watch._chunks) < 1000


@given(st.binary(max_size=2000), st.integers(1, 7))
def test_any_output_in_any_pieces(data, size):
    watch = ConsoleWatch()
    for at in range(0, len(data), size):
        watch.feed(data[at : at + size])
    watch.scan(end=True)
    assert watch.size == len(data)


@given(st.sampled_from([NO_ROOT, OOPS, WARNING]), st.lists(st.integers(1, 900), max_size=30))
def test_where_output_is_cut_does_not_matter(text, cuts):
    data, whole, parts = (BANNER + text).encode(), ConsoleWatch(), ConsoleWatch()
    whole.feed(data)
    whole.scan(end=True)
    at = 0
    for size in (*cuts, len(data)):
        parts.feed(data[at : at + size])
        parts.scan()
        at += size
    parts.scan(end=True)
    assert [(c.kind, c.lines) for c in parts.complaints] == [(c.kind, c.lines) for c in whole.complaints]


def test_every_marker_and_hint_has_one_of_the_signs_that_are_looked_for_first():
    for text in (*consolewatch._MARKERS, *(hint.message for hint in HINTS)):
        assert any(sign in text for sign in consolewatch._SIGNS), text


class LineByLine(ConsoleWatch):
    def _says_nothing(self, text: bytes) -> bool:
        return False


LINES = [
    *(line for text in (BANNER, NO_ROOT, OOPS, WARNING) for line in text.splitlines()),
    *("Run /init as init process", "hello", "/ # ", "", " \t", "[OK] done", "No EFI", "Decompressing Linux... done."),
    *(hint.message.decode() for hint in HINTS[::5]),
]


@given(
    st.lists(
        st.tuples(st.lists(st.tuples(st.booleans(), st.sampled_from(LINES)), max_size=12), st.integers(0, 150)),
        max_size=8,
    )
)
def test_what_is_passed_over_at_one_look_would_have_changed_nothing(pieces):
    quick, thorough = ConsoleWatch(), LineByLine()
    for lines, dull in pieces:
        text = "".join(f"[    1.000000] {line}\n" if is_stamped else f"{line}\n" for is_stamped, line in lines)
        for watch in (quick, thorough):
            watch.feed((text + "words of a program\n" * dull * 2).encode())
            watch.scan()
            watch.scan()
    for watch in (quick, thorough):
        watch.complaints = [(c.kind, c.lines, c.standing_lines) for c in watch.complaints]  # type: ignore[misc]
        watch._lock = watch.panic = None if watch.panic is None else watch.panic.text  # type: ignore[assignment]
        watch._open = None if watch._open is None else watch._open.lines  # type: ignore[assignment]
        watch._init &= not watch._stamped  # nobody asks then
        watch._signs = None
    assert vars(quick) == vars(thorough)


def test_much_output_of_a_program_costs_little():
    watch = heard(stamped(BANNER), "hello\n")
    piece = b"the quick brown fox: jumps over INFO: the [lazy] dog, WARNING: of the compressed data\n" * 800
    best = min(_time(watch, [piece] * 10) for _ in range(5))
    assert best / len(piece) / 10 < 20e-9, "line by line it is 40 ns a byte or more; this is for gross mistakes only"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"[    0.000000] x", (True, b"x")),
        (b"[12345.123456] x", (True, b"x")),
        (b"[    0.000000][    T0] x", (True, b"x")),
        (b"[1.5] x", (False, b"[1.5] x")),
        (b"[OK] done", (False, b"[OK] done")),
        (b"[" * 100, (False, b"[" * 100)),
    ],
)
def test_time_stamps(line, expected):
    assert without_stamp(line) == expected


def test_a_byte_costs_a_fraction_of_a_microsecond():
    watch = ConsoleWatch()
    text = stamped(BANNER + "virtio_blk virtio0: [vda] 2048 512-byte logical blocks (1.05 MB/1.00 MiB)\n" * 50).encode()
    pieces = [bytes([byte]) for byte in text] * 10
    best = min(_time(watch, pieces) for _ in range(5))
    assert best / len(pieces) < 1.5e-6, "an exit costs eight times as much; this is for gross mistakes only"


def _time(watch: ConsoleWatch, pieces: list[bytes]) -> float:
    began = time.process_time()
    for piece in pieces:
        watch.feed(piece)
    return time.process_time() - began
