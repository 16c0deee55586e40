"""Measuring whole processes and the exits inside them. Every function makes one measurement; `__main__` interleaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

from bench.contenders import MEMORY, ROOT, Contender, environment

LIMIT = 120
"""Seconds after which a guest has hung."""
WARM_UP = 0.7
"""Seconds that a guest runs before its VMM's memory is looked at."""
ENDLESS = 2_000_000_000
"""Exits that take hours."""

Figures = dict[str, float]


def whole_process(launch: str, contender: Contender, line: str = "") -> Figures:
    """Run to the end: wall and CPU in ms, peak memory in MiB, from the kernel's accounting of the finished process."""
    argv = contender.argv(line)
    reader, writer = os.pipe()
    with open(reader) as answer:
        try:
            subprocess.run(
                [launch, str(writer), *argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[writer],
                timeout=LIMIT,
                cwd=ROOT,
                env=environment(),
            )
        finally:
            os.close(writer)
        found = json.loads(answer.read())
    if found["status"] not in (0, 1):
        raise SystemExit(f"{contender.name} ended with {found['status']}: {' '.join(argv)}")
    return {
        "wall_ms": found["wall"] * 1e3,
        "cpu_ms": (found["user"] + found["system"]) * 1e3,
        "user_ms": found["user"] * 1e3,
        "peak_mib": found["peak_kib"] / 1024,
    }


def memory_beyond_ram(contender: Contender) -> Figures:
    """What a VMM holds while its guest runs, in MiB: its PSS, less that of the mappings which are the guest's RAM."""
    argv = contender.argv(f"outb {ENDLESS} {PLACES_OF_FLOOR['outb']:#x}")
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT, env=environment())
    try:
        time.sleep(WARM_UP)
        beyond = pss_beyond(mappings(process.pid), MEMORY << 10)
        if process.poll() is not None:
            raise SystemExit(f"{contender.name} did not keep running")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return {"beyond_ram_mib": beyond / 1024}


def mappings(process: int) -> list[tuple[int, int, int]]:
    """Start, length and PSS, the last two in KiB, of each mapping of a process, by address (proc(5), smaps).

    What nobody may write to, as the rest of what malloc(3) has set aside for a thread, has length 0: it is no RAM.
    """
    found, start, length, writable = [], 0, 0, False
    with open(f"/proc/{process}/smaps") as smaps:
        for text in smaps:
            name, _, value = text.partition(":")
            if name == "Size":
                length = int(value.split()[0]) if writable else 0
            elif name == "Pss":
                found.append((start, length, int(value.split()[0])))
            elif "-" in name:
                start, writable = int(name.partition("-")[0], 16), name.split()[1].startswith("rw")
    return found


def pss_beyond(found: list[tuple[int, int, int]], ram: int) -> int:
    """The sum of PSS but for the mappings, one behind the other, that together are `ram` KiB long."""
    total = sum(pss for _, _, pss in found)
    for first in range(len(found)):
        length = inside = 0
        for start, size, pss in found[first:]:
            if start != found[first][0] + (length << 10) or length >= ram:
                break
            length, inside = length + size, inside + pss
        if length == ram:
            return total - inside
    raise SystemExit(f"no mappings of {ram} KiB")


def exits(launch: str, contender: Contender, kernel: str, kind: str, count: int) -> Figures:
    """Wall and user-space CPU of one exit, in µs, over `count` of them.

    The floor and pyvmm measure the vCPU's thread from inside; QEMU's figure is the whole process with `count` exits
    less one with none.
    """
    if contender.name == "qemu":
        line = f"{kind} {count} {PLACES_OF_QEMU[kind]:#x}"
        idle, busy = whole_process(launch, contender), whole_process(launch, contender, line)
        return {
            "wall_us": (busy["wall_ms"] - idle["wall_ms"]) * 1e3 / count,
            "user_us": (busy["user_ms"] - idle["user_ms"]) * 1e3 / count,
        }
    if contender.name == "pyvmm":
        argv = [sys.executable, "-m", "bench.exit_cost", kernel, kind, str(count)]
    else:
        argv = contender.argv(f"{kind} {count} {PLACES_OF_FLOOR[kind]:#x}")
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, timeout=LIMIT, cwd=ROOT, env=environment())
    found = json.loads(done.stdout)
    return {"wall_us": found["wall"] * 1e6 / found["exits"], "user_us": found["user"] * 1e6 / found["exits"]}


# A port that microvm leaves to nobody, and one that it gives to a device handled in user space, do the same work: an
# exit, a look-up, a handler. Its MMIO figures are of an address where a virtio-mmio transport answers.
PLACES_OF_FLOOR = {"outb": 0x500, "inb": 0x500, "write": 0xD0000000, "read": 0xD0000000}
PLACES_OF_QEMU = {"outb": 0x3FF, "inb": 0x3FF, "write": 0xFEB00000, "read": 0xFEB00000}
