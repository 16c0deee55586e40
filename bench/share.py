"""`python -m bench share`: what files of a 9p share cost Linux, in pyvmm and in QEMU's microvm machine.

Both boot the tiny image's kernel with the same memory and command line and one program, bench/share_guest.c, which
mounts the same directory of the host's with the same options and does the same operations, by the guest's own clock.
All files are in the host's page cache. Rounds are interleaved: every round boots each contender once, the one that goes
first changing, and a boot makes all measurements.

The guest's kernel has its part in every figure: where KVM has to emulate it, it takes milliseconds for an operation,
and the VMM is the lesser part. So only ratios within one run mean much, and beside them the CPU time of the VMM's
process without its vCPU's thread: the server of the share. Linux tells a thread's time in steps of 10 ms, which a
measurement of few operations shows.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from bench.boot import PV_FEATURES
from bench.contenders import ROOT, build, guest
from bench.record import Bar, plot_pairs, write
from bench.virtio import follow
from pyvmm.images.newc import Archive

TAG = "host"
MEMORY = 128
"""MiB of guest RAM: with less, Linux may not find room for messages of 256 KiB in one piece."""
LIMIT = 600
"""Seconds that one guest may take from its start to its last measurement."""
BYTE = b"\x5a"
"""What `data` is full of, which the guest expects and writes."""
METADATA = ["create", "stat", "open", "rename", "unlink"]
STREAMS = ["write:65536", "write:1048576", "read:65536", "read:1048576"]
TESTS = [*METADATA, "list", *STREAMS, "randread:4096", "fsync:4096"]
"""The guest's measurements in its order; after the colon the bytes of one request. `open` closes, too; `fsync` is a
write and an fsync; an operation of `list` is one entry."""
WORDS = "quiet acpi=off clocksource=kvm-clock rdinit=/init"
NOTE = (
    "The guest's kernel is part of all rates; CPU is the VMM's for one operation, without its vCPU. Compare the ratios."
)
END = re.compile(r"end (\S+) (\d+) (\d+)")


class Result:
    """One measurement.

    rate    operations a second; of STREAMS, MB a second
    cpu     seconds of the VMM's CPU time for one operation
    """

    __slots__ = ("cpu", "rate")

    def __init__(self, test: str, line: str, cpu: float) -> None:
        """From the guest's `end` line of `test`, and the CPU time of all the operations."""
        found = END.fullmatch(line)
        if found is None or found[1] != test or not int(found[2]) or not int(found[3]):
            raise SystemExit(f"the guest says {line!r} (expected `end {test}`, operations and nanoseconds)")
        operations, seconds = int(found[2]), int(found[3]) / 1e9
        amount = operations * int(test.partition(":")[2]) / 1e6 if test in STREAMS else operations
        self.rate = amount / seconds
        self.cpu = max(cpu, 0.0) / operations


Samples = dict[str, dict[str, list[Result]]]
"""Results of all rounds, by test and contender."""


class Setting:
    """What every boot has in common: kernel, initramfs, the shared directory, the command line.

    count     files that metadata operations are done on, and single requests
    entries   files in the directory that is listed
    mib       size of the file that is read and written
    """

    def __init__(self, folder: Path, count: int, entries: int, mib: int) -> None:
        self.share = folder / "share"
        (self.share / "entries").mkdir(parents=True)
        for number in range(entries):
            (self.share / "entries" / f"entry{number}").touch()
        (self.share / "data").write_bytes(BYTE * (mib << 20))
        self.kernel = guest("tiny")
        self.initrd = folder / "initrd"
        self.initrd.write_bytes(initramfs(Path(build("share_guest", folder, "-static")).read_bytes()))
        self.words = f"{WORDS} share_count={count} share_entries={entries} share_mib={mib}"
        self.line = whole_line([*start(self), "--dry-run"])


def initramfs(program: bytes) -> bytes:
    """One that holds `program`, and what Linux needs to run it as process 1 with a console."""
    archive = Archive()
    archive.folder("dev")
    archive.character_device("dev/console", 0o600, 5, 1)
    archive.folder("mnt")
    archive.file("init", program, 0o755)
    return archive.finish()


def whole_line(argv: list[str]) -> str:
    """The command line that a dry run of pyvmm shows: it puts its own words before ours."""
    shown = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
    found = re.search(r"(?m)^command line +(.*)$", shown)
    if found is None:
        raise SystemExit("pyvmm run --dry-run shows no command line")
    return found[1]


def start(setting: Setting) -> list[str]:
    """How pyvmm boots it, as yet without the share."""
    command = [sys.executable, "-m", "pyvmm", "run", setting.kernel, "--initrd", str(setting.initrd)]
    return [*command, "--mem", f"{MEMORY}M", "--append", setting.words]


def pyvmm(setting: Setting) -> list[str]:
    return [*start(setting), "--share", f"{setting.share},tag={TAG}", "--transport", "mmio"]


def qemu(program: str, setting: Setting) -> list[str]:
    """The same with QEMU, whose machine adds by itself where its device is. Owners are kept as pyvmm keeps them."""
    model = "passthrough" if os.geteuid() == 0 else "mapped-xattr"
    command = [program, "-M", "microvm,acpi=off,rtc=on,isa-serial=on", "-enable-kvm", "-m", str(MEMORY)]
    command += ["-cpu", f"host,-cx16,-arch-capabilities,{PV_FEATURES}", "-global", "virtio-mmio.force-legacy=false"]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]
    command += ["-fsdev", f"local,id=s,path={setting.share},security_model={model}"]
    command += ["-device", f"virtio-9p-device,fsdev=s,mount_tag={TAG}"]
    return [*command, "-kernel", setting.kernel, "-initrd", str(setting.initrd), "-append", setting.line]


def has_9p(program: str) -> bool:
    """Whether this QEMU has been built with it."""
    shown = subprocess.run([program, "-M", "microvm", "-device", "help"], capture_output=True, text=True, timeout=60)
    return '"virtio-9p-device"' in shown.stdout


def contenders(setting: Setting) -> dict[str, list[str]]:
    """pyvmm and, where it is installed and can share, QEMU, and how each is started."""
    found = {"pyvmm": pyvmm(setting)}
    program = shutil.which("qemu-system-x86_64")
    if program and has_9p(program):
        found["qemu"] = qemu(program, setting)
    return found


def results(said: list[tuple[str, float]]) -> dict[str, Result]:
    """By test, what one guest has said of all TESTS, each line with its CPU time."""
    return {test: Result(test, line, cpu) for test, (line, cpu) in zip(TESTS, said, strict=True)}


def run(setting: Setting, rounds: int) -> Samples:
    samples: Samples = {test: {} for test in TESTS}
    found = list(contenders(setting).items())
    for number in range(rounds):
        for name, argv in found if number % 2 == 0 else reversed(found):
            for test, result in results(follow(argv, len(TESTS), LIMIT)).items():
                samples[test].setdefault(name, []).append(result)
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
    return samples


def ratio(samples: Samples, test: str) -> float | None:
    """pyvmm's median rate over QEMU's; None without both."""
    if not {"pyvmm", "qemu"} <= samples[test].keys():
        return None
    mine, other = (median(result.rate for result in samples[test][name]) for name in ("pyvmm", "qemu"))
    return mine / other


def unit(test: str) -> str:
    """What the rate of a test is in."""
    return "MB/s" if test in STREAMS else "entries/s" if test == "list" else "ops/s"


def table(samples: Samples) -> str:
    """A line for each test and contender: the rate, CPU time for one operation, and the ratio."""
    columns = f"{'median':>10}{'least':>10}{'greatest':>10}{'CPU µs':>10}"
    lines = [f"{'operation':16}{'unit':11}{'contender':11}{columns}  pyvmm / qemu"]
    for test, contenders in samples.items():
        share = ratio(samples, test)
        for name, found in contenders.items():
            rates = [result.rate for result in found]
            figures = f"{median(rates):10.1f}{min(rates):10.1f}{max(rates):10.1f}"
            figures += f"{median(result.cpu for result in found) * 1e6:10.1f}"
            compared = f"  {share:.2f}" if share is not None and name == "pyvmm" else ""
            lines.append(f"{test:16}{unit(test):11}{name:11}{figures}{compared}")
    return "\n".join(lines)


def plot(samples: Samples, path: Path) -> bool:
    """The rates and the CPU times as SVG (see `plot_pairs`)."""

    def bars(test: str) -> dict[str, Bar]:
        rates = {name: median(result.rate for result in found) for name, found in samples[test].items()}
        top = max(rates.values(), default=1.0)
        return {
            name: Bar(f"{rate:,.3g} {unit(test)}", rate / top, median(one.cpu for one in samples[test][name]))
            for name, rate in rates.items()
        }

    rows = [(test, bars(test)) for test in TESTS[::-1]]
    rate = "rate in the guest (the longer bar of each pair is 1)"
    return plot_pairs(path, rows, rate, "the VMM's CPU time for one operation, without its vCPU, µs")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench share", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=100, help="operations a measurement (default %(default)s)")
    parser.add_argument("--entries", type=int, default=1000, help="files that are listed (default %(default)s)")
    parser.add_argument("--mib", type=int, default=8, help="size of the file that is streamed (default %(default)s)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the share lies (default: the temporary one)")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench", metavar="DIR")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.count, options.entries, options.mib) < 1:
        parser.error("at least one of each")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        setting = Setting(Path(folder).resolve(), options.count, options.entries, options.mib)
        samples = run(setting, options.rounds)
    print(f"{table(samples)}\n{NOTE}")
    figures = {
        "rounds": options.rounds,
        "count": options.count,
        "entries": options.entries,
        "mib": options.mib,
        "memory_mib": MEMORY,
        "command_line": setting.line,
        "tests": {
            test: {
                "unit": unit(test),
                "ratio": ratio(samples, test),
                "contenders": {
                    name: [{figure: getattr(result, figure) for figure in Result.__slots__} for result in found]
                    for name, found in contenders.items()
                },
            }
            for test, contenders in samples.items()
        },
    }
    write(figures, options.output, "share", lambda path: plot(samples, path))
    return 0
