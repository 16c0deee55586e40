"""`python -m bench virtio`: what requests to virtio devices cost, in pyvmm and in QEMU's microvm machine, MMIO or PCI.

Both run the virtio-bench guest, which drives the devices itself from ring 3, with the same image file, queue size and
cache mode, the same program at the other end of the network, and one pipe for serial port and console. Rounds are
interleaved: every round starts each contender once, the one that goes first changing, and a start makes all
measurements. QEMU has an iothread and is measured with each of its aio modes; of these the better counts, for each
measurement. Over PCI interrupts are messages (MSI-X); both have the same devices as over MMIO.

Of text for the console only what has arrived counts: QEMU drops what the pipe has no room for, and completes the
request all the same.

CPU time is that of the VMM's process without its vCPU's thread, which spins in the guest: the data planes. Linux tells
a thread's time in steps of 10 ms.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bench.boot import PV_FEATURES
from bench.contenders import MEMORY, ROOT, build, environment, guest
from bench.record import Bar, plot_pairs, write
from pyvmm import layout

QUEUE_SIZE = 256
IMAGE_MIB = 64
LIMIT = 120
"""Seconds that one start of a guest may take."""
TRIES = 3
"""Starts of a guest until it has made all its measurements: a nested KVM may lose an interrupt, in any VMM."""
TICK = os.sysconf("SC_CLK_TCK")
BLOCK = [
    *(f"{what}:4096:{depth}{how}" for what in ("read", "write") for how in ("", ":irq") for depth in (1, 32, 256)),
    "seqread:1048576:4",
    "seqwrite:1048576:4",
]
NET = [f"{what}:{size}:256{how}" for what in ("send", "receive") for size in (64, 1500) for how in ("", ":irq")]
CONSOLE = ["print:64:32", "print:4096:32"]
DEVICES = {"block": BLOCK, "net": NET, "console": CONSOLE}
TESTS = [*BLOCK, *NET, *CONSOLE]
"""What the guest is asked to measure, in its words: WHAT:SIZE:DEPTH, then `:irq` for interrupts rather than polling."""

ECAM = 0xE0000000
"""Where PCI is configured in QEMU's microvm machine, which has no ports for it (QEMU's include/hw/i386/microvm.h)."""
TRANSPORTS = ("mmio", "pci")

LINE = re.compile(rb"^(?:begin|end|FAILED:) .*", re.MULTILINE)
"""What the guest says of its measurements, among the text that it prints to measure the console."""
END = re.compile(r"end (\d+) (\d+) (\d+) (\d+) (\d+)")
PRINT = re.compile(r"begin print:(\d+):")


class Result:
    """One measurement.

    rate       operations a second
    cpu        seconds of the data planes' CPU time for one operation
    interrupts, notifications    of the device and of the driver, for one operation
    lost       frames that were ordered, or writes to a console, that did not arrive
    """

    __slots__ = ("cpu", "interrupts", "lost", "notifications", "rate")

    def __init__(self, line: str, khz: int, cpu: float) -> None:
        """From the guest's `end` line, the speed of its counter, and the CPU time of all the operations."""
        found = END.fullmatch(line)
        if found is None:
            raise SystemExit(f"the guest says {line!r} (expected `end` and five numbers)")
        operations, cycles, interrupts, notifications, self.lost = map(int, found.groups())
        self.rate = operations / (cycles / khz / 1e3)
        done = max(operations, 1)
        self.cpu = max(cpu, 0.0) / done
        self.interrupts = interrupts / done
        self.notifications = notifications / done


class Samples:
    """Results of all rounds, by test and contender."""

    def __init__(self) -> None:
        self.results: dict[tuple[str, str], list[Result]] = {}

    def add(self, test: str, contender: str, result: Result) -> None:
        self.results.setdefault((test, contender), []).append(result)

    def rate(self, test: str, contender: str) -> float:
        """The median of the rates; 0 where there is none."""
        return median([result.rate for result in self.results.get((test, contender), ())] or [0.0])

    def best(self, test: str, prefix: str) -> str | None:
        """Of the contenders whose names begin so, the one with the best median; None where there is none."""
        names = [name for at, name in self.results if at == test and name.startswith(prefix)]
        return max(names, key=lambda name: self.rate(test, name)) if names else None

    def ratio(self, test: str) -> float | None:
        """pyvmm's median rate over that of QEMU at its best."""
        qemu = self.best(test, "qemu")
        if qemu is None or ("pyvmm" not in {name for at, name in self.results if at == test}):
            return None
        return self.rate(test, "pyvmm") / self.rate(test, qemu)


def counter(peer: str) -> int:
    """The speed of the time-stamp counter, in kHz, as the program `peer` finds it."""
    return int(subprocess.run([peer, "tsc"], check=True, stdout=subprocess.PIPE, text=True).stdout)


class Setting:
    """What every start has in common: guest's kernel, image, transport, the peer's program and socket, the counter."""

    def __init__(self, folder: Path, image: Path, transport: str) -> None:
        self.kernel = guest("virtio-bench")
        self.image = image
        self.transport = transport
        self.peer = build("virtio_peer", folder)
        self.socket = folder / "net"
        self.khz = counter(self.peer)

    def words(self, tests: list[str], milliseconds: int) -> str:
        """The guest's command line."""
        return " ".join([f"khz={self.khz}", f"ms={milliseconds}", *tests])


def needed(tests: list[str]) -> list[str]:
    """Which of DEVICES the tests use, in their order."""
    return [device for device, its in DEVICES.items() if set(its) & set(tests)]


def announcement(devices: int) -> str:
    """The words that tell a kernel where pyvmm's devices are, the first ones of as many slots."""
    base, size = layout.VIRTIO_MMIO, layout.VIRTIO_MMIO_SIZE
    places = enumerate(layout.VIRTIO_GSIS[:devices])
    return " ".join(f"virtio_mmio.device={size >> 10}K@{base + size * at:#x}:{gsi}" for at, gsi in places)


class Pyvmm:
    """Disk, network and console, in the order of its slots."""

    name = "pyvmm"
    tests = TESTS

    def argv(self, setting: Setting, words: str, devices: list[str]) -> list[str]:
        options = {
            "block": ["--disk", f"{setting.image}"],
            "net": ["--net", f"socket={setting.socket}"],
            "console": ["--port", "unused=file:/dev/null"],
        }
        command = [sys.executable, "-m", "pyvmm", "run", setting.kernel, "--mem", f"{MEMORY}M"]
        command += [option for device in devices for option in options[device]]
        if setting.transport == "mmio":
            words = f"{announcement(len(devices))} {words}"
        return [*command, "--transport", setting.transport, "--append", f"acpi=off {words}"]


class Qemu:
    """The microvm machine with the same devices; `aio` is one of its ways to do disk I/O."""

    def __init__(self, program: str, aio: str, tests: list[str]) -> None:
        self.name = f"qemu {aio}"
        self.tests = tests
        self.program = program
        self.aio = aio

    def argv(self, setting: Setting, words: str, devices: list[str]) -> list[str]:
        drive = f"if=none,id=d,format=raw,cache=writeback,aio={self.aio},file={setting.image}"
        netdev = f"stream,id=n,server=off,addr.type=unix,addr.path={setting.socket}"
        sizes = f"rx_queue_size={QUEUE_SIZE},tx_queue_size={QUEUE_SIZE}"
        # The machine has PCI only together with ACPI; a network card on PCI, a ROM to boot from, which is in the way.
        machine, bus, no_rom = "microvm,acpi=off,rtc=on", "device", ""
        if setting.transport == "pci":
            machine, bus, no_rom = "microvm,acpi=on,rtc=on,pcie=on", "pci,disable-legacy=on", ",romfile="
            words = f"ecam={ECAM:#x} {words}"
        block = f"virtio-blk-{bus},drive=d,iothread=io,queue-size={QUEUE_SIZE},num-queues=1"
        options = {
            "block": ["-object", "iothread,id=io", "-drive", drive, "-device", block],
            "net": ["-netdev", netdev, "-device", f"virtio-net-{bus},netdev=n,{sizes}{no_rom}"],
            "console": ["-device", f"virtio-serial-{bus}", "-device", "virtconsole,chardev=c"],
        }
        command = [self.program, "-M", machine, "-enable-kvm", "-m", str(MEMORY)]
        command += ["-cpu", f"host,-cx16,-arch-capabilities,{PV_FEATURES}", "-global", "virtio-mmio.force-legacy=false"]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        command += ["-chardev", "stdio,id=c,mux=on", "-serial", "chardev:c"]
        command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
        command += [option for device in devices for option in options[device]]
        return [*command, "-kernel", setting.kernel, "-append", words]


Contender = Pyvmm | Qemu


def contenders() -> list[Contender]:
    """pyvmm and, where it is installed, QEMU with each aio mode that works; one of them for what is not a disk."""
    found: list[Contender] = [Pyvmm()]
    program = shutil.which("qemu-system-x86_64")
    if program:
        found.append(Qemu(program, "threads", TESTS))
        if has_io_uring(program):
            found.append(Qemu(program, "io_uring", BLOCK))
    return found


def has_io_uring(program: str) -> bool:
    """Whether this QEMU has it and this kernel lets it."""
    with tempfile.NamedTemporaryFile() as image:
        image.truncate(1 << 20)
        drive = f"if=none,format=raw,aio=io_uring,file={image.name}"
        command = [program, "-M", "none", "-nodefaults", "-display", "none", "-drive", drive, "-monitor", "stdio"]
        done = subprocess.run(command, input=b"quit\n", capture_output=True, timeout=LIMIT)
    return done.returncode == 0


def data_plane_cpu(pid: int) -> float:
    """Seconds of CPU time of all threads of a VMM that has one vCPU, without that of the vCPU's thread."""
    whole = time.clock_gettime((~pid << 3) | 2)  # the process's CPU clock, as clock_getcpuclockid(3) makes it
    stats = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            stats.append((thread / "stat").read_text())
        except OSError:
            continue  # it has ended meanwhile
    return whole - vcpu_cpu(stats)


def vcpu_cpu(stats: list[str]) -> float:
    """Seconds of CPU time of the vCPU's thread, from the `stat` files (proc(5)) of all threads of a VMM that has one.

    It is the thread that has been in the guest longest. Where KVM emulates the guest's kernel that counts as no time in
    the guest, and until there is some it is the thread that has run longest.
    """
    found = [stat.rpartition(")")[2].split() for stat in stats]  # fields from the third on
    _, spent = max((int(fields[40]), int(fields[11]) + int(fields[12])) for fields in found)
    return spent / TICK


def measure(setting: Setting, contender: Contender, tests: list[str], milliseconds: int) -> list[Result]:
    """Start the guest once for all `tests`; what it says of each."""
    setting.socket.unlink(missing_ok=True)
    peer = subprocess.Popen([setting.peer, "listen", str(setting.socket)])
    argv = contender.argv(setting, setting.words(tests, milliseconds), needed(tests))
    try:
        while not setting.socket.exists() and peer.poll() is None:
            time.sleep(0.001)
        said = follow(argv, len(tests), LIMIT)
    finally:
        peer.kill()
        peer.wait()
    return [Result(line, setting.khz, cpu) for line, cpu in said]


def measured(setting: Setting, contender: Contender, tests: list[str], milliseconds: int) -> list[Result]:
    """As `measure`, up to TRIES times where the guest fails; each failure is told."""
    for left in reversed(range(TRIES)):
        try:
            return measure(setting, contender, tests, milliseconds)
        except SystemExit as failure:
            if not left:
                raise
            print(f"{contender.name}, to be repeated: {failure}", file=sys.stderr)
    raise AssertionError("the last try returns or raises")


def delivered(begin: str, end: str, printed: int) -> str:
    """The `end` line, with writes to a console of which nothing is among the `printed` bytes as lost."""
    wanted, done = PRINT.match(begin), END.fullmatch(end)
    if wanted is None or done is None:
        return end
    operations = int(done[1])
    arrived = min(operations, round(printed / int(wanted[1])))
    return f"end {arrived} {done[2]} {done[3]} {done[4]} {operations - arrived}"


def follow(argv: list[str], count: int, limit: float) -> list[tuple[str, float]]:
    """Start a VMM and see its guest make `count` measurements, between a line `begin` and a line `end` each.

    Returns each one's `end` line, and the data planes' seconds of CPU time meanwhile. SystemExit where the guest says
    that something FAILED, or has not made them all at its end or after `limit` seconds.
    """
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0, cwd=ROOT, env=environment()
    ) as process:
        try:
            return _listen(process, count, limit)
        finally:
            process.kill()


def _listen(process: subprocess.Popen[bytes], count: int, limit: float) -> list[tuple[str, float]]:
    assert process.stdout is not None
    until = time.monotonic() + limit
    said: list[tuple[str, float]] = []
    held, before, end = b"", 0.0, f"no end within {limit:g} s"
    begin, printed = "", 0  # the line, and how many bytes have come since
    while select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
        data = process.stdout.read(1 << 16)
        if not data:
            end = "it has ended"
            break
        whole, newline, rest = data.rpartition(b"\n")
        text, held = (held + whole + newline, rest) if newline else (b"", held + data)
        at = 0
        for found in LINE.finditer(text):
            line = found[0].decode(errors="replace").strip()
            printed += found.start() - at
            at = found.end()
            if line.startswith("begin "):
                before, begin, printed = data_plane_cpu(process.pid), line, 0
            elif line.startswith("end "):
                said.append((delivered(begin, line, printed), data_plane_cpu(process.pid) - before))
                if len(said) == count:
                    return said
            else:
                raise SystemExit(f"the guest says: {line}: {process.args!r}")
        printed += len(text) - at
    raise SystemExit(f"{end}, with {len(said)} measurements of {count}: {process.args!r}")


def run(setting: Setting, rounds: int, milliseconds: int, only: str) -> Samples:
    """All rounds, of the tests in which the regular expression `only` is found."""
    samples = Samples()
    chosen = [(contender, [test for test in contender.tests if re.search(only, test)]) for contender in contenders()]
    for number in range(rounds):
        for contender, tests in chosen if number % 2 == 0 else reversed(chosen):
            if not tests:
                continue
            for test, result in zip(tests, measured(setting, contender, tests, milliseconds), strict=True):
                samples.add(test, contender.name, result)
            print(f"round {number + 1} of {rounds}: {contender.name}", file=sys.stderr)
    return samples


def table(samples: Samples) -> str:
    """A line for each test and contender: operations a second, CPU time for one, and the ratio."""
    columns = f"{'median':>10}{'least':>10}{'greatest':>10}{'CPU µs':>9}{'irqs':>8}{'notes':>8}{'lost':>7}"
    lines = [f"{'operations a second':24}{'contender':15}{columns}  pyvmm / qemu"]
    for test in TESTS:
        for (at, name), results in sorted(samples.results.items()):
            if at != test:
                continue
            rates = [result.rate for result in results]
            each = [median(getattr(result, figure) for result in results) for figure in ("interrupts", "notifications")]
            figures = f"{median(rates):10.0f}{min(rates):10.0f}{max(rates):10.0f}"
            figures += f"{median(result.cpu for result in results) * 1e6:9.2f}{each[0]:8.3f}{each[1]:8.3f}"
            figures += f"{sum(result.lost for result in results):7}"
            share = samples.ratio(test) if name == "pyvmm" else None
            lines.append(f"{test:24}{name:15}{figures}" + ("" if share is None else f"  {share:.2f}"))
    return "\n".join(lines)


def plot(samples: Samples, path: Path) -> bool:
    """The rates and the CPU times as SVG (see `plot_pairs`); of QEMU's variants each test's best."""
    tests = [test for test in TESTS if any(at == test for at, _ in samples.results)][::-1]

    def bars(test: str) -> dict[str, Bar]:
        top = max(samples.rate(at, name) for at, name in samples.results if at == test)
        found = {prefix: samples.best(test, prefix) for prefix in ("pyvmm", "qemu")}
        return {prefix: bar(test, name, top) for prefix, name in found.items() if name is not None}

    def bar(test: str, name: str, top: float) -> Bar:
        rate = samples.rate(test, name)
        return Bar(f"{rate:,.0f}", rate / top, median(result.cpu for result in samples.results[test, name]))

    rows = [(test, bars(test)) for test in tests]
    rate = "operations a second (the longer bar of each pair is 1)"
    return plot_pairs(path, rows, rate, "CPU time of the data planes for one operation, µs")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench virtio", description=__doc__)
    parser.add_argument("--transport", choices=TRANSPORTS, default=TRANSPORTS[0], help="(default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ms", type=int, default=500, help="milliseconds a measurement (default %(default)s)")
    parser.add_argument("--only", default="", metavar="RE", help="just the tests in which this is found: read:4096")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the image lies (default: the temporary one)")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench", metavar="DIR")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or not 10 <= options.ms <= 10_000:
        parser.error("at least one round, and 10 to 10000 ms")
    if not any(re.search(options.only, test) for test in TESTS):
        parser.error(f"no test has {options.only!r}: {' '.join(TESTS)}")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        image = Path(folder) / "image"
        image.write_bytes(os.urandom(1 << 20) * IMAGE_MIB)
        setting = Setting(Path(folder), image, options.transport)
        samples = run(setting, options.rounds, options.ms, options.only)
    print(table(samples))
    figures = {
        "transport": options.transport,
        "rounds": options.rounds,
        "milliseconds": options.ms,
        "tsc_khz": setting.khz,
        "tests": {
            test: {
                "ratio": samples.ratio(test),
                "contenders": {
                    name: [{figure: getattr(result, figure) for figure in Result.__slots__} for result in results]
                    for (at, name), results in samples.results.items()
                    if at == test
                },
            }
            for test in TESTS
        },
    }
    name = "virtio" if options.transport == TRANSPORTS[0] else f"virtio-{options.transport}"
    write(figures, options.output, name, lambda path: plot(samples, path))
    return 0
