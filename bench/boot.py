"""`python -m bench boot`: how long Linux takes to its first program's first line, in pyvmm and in QEMU's microvm.

Both boot the same vmlinux and initramfs of the tiny image with the same memory, CPUs and command line, interleaved:
every round measures each once, the one that goes first changing. Measured is the wall time from the start of the
process to the greeting on its standard output, and the CPU time that the kernel has accounted to it by then. Where
pyvmm's time goes comes from two more boots: exits by device, and the kernel's own initcall_debug.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median

from bench.contenders import ROOT, environment, guest
from bench.record import pyplot, write
from pyvmm import VM
from pyvmm.backends.capture import CaptureConsole
from pyvmm.bus import Bus
from pyvmm.kvm.exits import Exit, Mmio, Pio
from pyvmm.observe import Observer

GREETING = b"pyvmm: greeting="
LIMIT = 300
"""Seconds after which a guest has hung."""
TARGET = 0.97
"""pyvmm's median over QEMU's: what it should stay under."""
INITCALL = re.compile(r"initcall (\w+)\+\S+(?: \[\w+\])? returned -?\d+ after (\d+) usecs")
INITCALLS_SHOWN = 12
TICK = os.sysconf("SC_CLK_TCK")
PV_FEATURES = "kvm-pv-ipi=off,kvm-pv-unhalt=off,kvm-pv-sched-yield=off,kvm-pv-tlb-flush=off"
"""What pyvmm takes from CPUID on a KVM whose hypercalls never end, so that both guests see the same."""

Figures = dict[str, float]


class Machine:
    """What both boot: `kernel` and `initrd` are paths, `memory` is in MiB, `line` is the whole command line."""

    def __init__(self, cpus: int, memory: int, words: str) -> None:
        self.cpus = cpus
        self.memory = memory
        self.words = words
        self.kernel = guest("tiny")
        self.initrd = guest("tiny", "initrd")
        shown = subprocess.run(
            [*self.pyvmm(), "--dry-run"], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
        ).stdout
        found = re.search(r"(?m)^command line +(.*)$", shown)
        if found is None:
            raise SystemExit("pyvmm run --dry-run shows no command line")
        self.line = found[1]

    def pyvmm(self) -> list[str]:
        """How pyvmm boots it; it puts its own words before ours, which makes `line`."""
        sizes = ["--mem", f"{self.memory}M", "--cpus", str(self.cpus)]
        command = [sys.executable, "-m", "pyvmm", "run", self.kernel, "--initrd", self.initrd, *sizes]
        return [*command, "--append", self.words]

    def qemu(self, program: str) -> list[str]:
        """How QEMU boots it, with the devices that pyvmm has too, and none that would add to the command line."""
        acpi = "off" if "acpi=off" in self.words.split() else "on"
        machine = f"microvm,acpi={acpi},rtc=on,isa-serial=on,auto-kernel-cmdline=off"
        command = [program, "-M", machine, "-enable-kvm", "-cpu", f"host,-cx16,-arch-capabilities,{PV_FEATURES}"]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]
        command += ["-m", str(self.memory), "-smp", str(self.cpus)]
        return [*command, "-kernel", self.kernel, "-initrd", self.initrd, "-append", self.line]

    def vm(self, words: str, *observers: Observer) -> VM:
        """The same in this process, to be started standing still, with other `words`."""
        return VM(
            self.kernel,
            initrd=self.initrd,
            mem=f"{self.memory}M",
            cpus=self.cpus,
            append=words,
            timeout=LIMIT,
            observers=observers,
            paused=True,
        )


def greeting(vm: VM) -> str:
    """Wait for it; all that was printed."""
    assert isinstance(vm.console, CaptureConsole)
    vm.console.expect(GREETING.decode(), LIMIT)
    return vm.console.text


def boot(argv: list[str]) -> Figures:
    """Boot to the greeting and end it there: wall, and user and system CPU, in seconds."""
    began = time.monotonic()
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        cwd=ROOT,
        env=environment(),
    )
    assert process.stdout is not None and process.stderr is not None
    shown = b""
    try:
        while GREETING not in shown:
            if time.monotonic() - began > LIMIT:
                raise SystemExit(f"no greeting within {LIMIT} s: {' '.join(argv)}\n{shown[-1000:].decode()}")
            if not select.select([process.stdout], [], [], 1)[0]:
                continue
            data = process.stdout.read(65536)
            if not data:
                errors = process.stderr.read().decode()
                raise SystemExit(f"ended before the greeting: {' '.join(argv)}\n{errors}")
            shown += data
        wall = time.monotonic() - began
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    finally:
        process.kill()
        process.communicate()
    return {"wall_s": wall, "user_s": int(fields[11]) / TICK, "system_s": int(fields[12]) / TICK}  # proc(5)


class Exits(Observer):
    """Counts exits by the device that they went to, and how."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.buses: tuple[Bus, Bus] | None = None

    def on_exit(self, vcpu: int, exit: Exit) -> None:
        if isinstance(exit, Pio | Mmio):
            assert self.buses is not None
            is_port = isinstance(exit, Pio)
            address = exit.port if isinstance(exit, Pio) else exit.gpa
            found = self.buses[0 if is_port else 1].find(address, exit.size)
            name = found[2].name if found else f"nobody ({address:#x})"
            self.counts[name, "write" if exit.is_write else "read"] += 1
        else:
            self.counts[exit.name, ""] += 1


def exits_by_device(machine: Machine) -> list[tuple[str, str, int]]:
    """Device, direction and number of the exits of one boot, most first."""
    seen = Exits()
    with machine.vm(machine.words, seen) as vm:
        seen.buses = (vm.machine.ports, vm.machine.mmio)
        vm.resume()
        greeting(vm)
    return [(name, how, count) for (name, how), count in seen.counts.most_common()]


def initcalls(machine: Machine) -> list[tuple[str, float]]:
    """The kernel's initcalls with their milliseconds, longest first. What they print counts, too."""
    words = machine.words.replace("quiet", "") + " initcall_debug loglevel=8 log_buf_len=1M"
    with machine.vm(words) as vm:
        vm.resume()
        text = greeting(vm)
    found = [(name, int(spent) / 1e3) for name, spent in INITCALL.findall(text)]
    return sorted(found, key=lambda item: -item[1])


def run(machine: Machine, rounds: int) -> dict[str, list[Figures]]:
    """The figures of all rounds, by contender."""
    contenders = {"pyvmm": machine.pyvmm()}
    qemu = shutil.which("qemu-system-x86_64")
    if qemu:
        contenders["qemu"] = machine.qemu(qemu)
    samples: dict[str, list[Figures]] = {name: [] for name in contenders}
    for number in range(rounds):
        order = list(contenders)
        for name in order if number % 2 == 0 else reversed(order):
            samples[name].append(boot(contenders[name]))
            print(f"round {number + 1} of {rounds}: {name:6} {samples[name][-1]['wall_s']:7.2f} s", file=sys.stderr)
    return samples


def table(samples: dict[str, list[Figures]]) -> str:
    """Median, least and greatest of each figure, and the ratio of the medians."""
    lines = [f"{'figure':12}{'contender':11}{'median':>9}{'least':>9}{'greatest':>9}"]
    for figure in ("wall_s", "user_s", "system_s"):
        for name, rounds in samples.items():
            values = [figures[figure] for figures in rounds]
            lines.append(f"{figure:12}{name:11}{median(values):9.2f}{min(values):9.2f}{max(values):9.2f}")
    share = ratio(samples)
    if share is not None:
        lines.append(f"pyvmm / qemu, median wall: {share:.3f}  {'met' if share <= TARGET else 'MISSED'} (<= {TARGET})")
    return "\n".join(lines)


def ratio(samples: dict[str, list[Figures]]) -> float | None:
    """pyvmm's median wall time over QEMU's."""
    if "qemu" not in samples:
        return None
    mine, other = (median(figures["wall_s"] for figures in samples[name]) for name in ("pyvmm", "qemu"))
    return mine / other


def plot(
    samples: dict[str, list[Figures]], exits: list[tuple[str, str, int]], calls: list[tuple[str, float]], path: Path
) -> bool:
    """Wall and CPU of each contender, exits by device, initcalls, as SVG; False where matplotlib is missing."""
    plt = pyplot()
    if plt is None:
        return False
    figure, (times, devices, kernel) = plt.subplots(1, 3, figsize=(18, 6), layout="constrained")
    colours = {"pyvmm": "#3367d6", "qemu": "#e8710a"}
    for number, name in enumerate(samples):
        for column, measured in enumerate(("wall_s", "system_s", "user_s")):
            values = [figures[measured] for figures in samples[name]]
            middle = median(values)
            spread = [[middle - min(values)], [max(values) - middle]]
            label = name if column == 0 else None
            place = column + 0.4 * number
            drawn = times.bar(place, middle, 0.38, yerr=spread, color=colours[name], label=label, capsize=4)
            times.bar_label(drawn, fmt="%.3g", padding=3)
    times.set_xticks([0.2, 1.2, 2.2], ["wall", "system CPU", "user CPU"])
    times.set_title("seconds to the first line from user space")
    times.legend()
    shown = exits[:INITCALLS_SHOWN][::-1]
    drawn = devices.barh([f"{name} {how}" for name, how, _ in shown], [count for _, _, count in shown], color="#3367d6")
    devices.bar_label(drawn, padding=3)
    devices.set_title("exits of pyvmm's boot")
    longest = calls[:INITCALLS_SHOWN][::-1]
    drawn = kernel.barh([name for name, _ in longest], [spent for _, spent in longest], color="#9aa0a6")
    kernel.bar_label(drawn, fmt="%.0f", padding=3)
    kernel.set_title("the kernel's longest initcalls, ms")
    for axis in (times, devices, kernel):
        axis.margins(0.12)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return True


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench boot", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--mem", type=int, default=64, metavar="MIB")
    parser.add_argument("--acpi", action="store_true", help="with ACPI, which microvm has by default off here")
    parser.add_argument("--verbose", action="store_true", help="without `quiet`: every byte is an exit")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench", metavar="DIR")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("at least one round")
    words = ["clocksource=kvm-clock", *([] if options.verbose else ["quiet"]), *([] if options.acpi else ["acpi=off"])]
    machine = Machine(options.cpus, options.mem, " ".join(words))
    print(f"command line: {machine.line}\nmemory: {machine.memory} MiB, CPUs: {machine.cpus}")
    samples = run(machine, options.rounds)
    print(table(samples))
    exits, calls = exits_by_device(machine), initcalls(machine)
    print(f"\nexits of pyvmm's boot: {sum(count for _, _, count in exits)}")
    for name, how, count in exits[:INITCALLS_SHOWN]:
        print(f"  {name + ' ' + how:40}{count:8}")
    print(f"\nthe kernel's initcalls: {sum(spent for _, spent in calls):.0f} ms in {len(calls)}; the longest:")
    for name, spent in calls[:INITCALLS_SHOWN]:
        print(f"  {name:40}{spent:8.0f} ms")
    figures = {
        "rounds": options.rounds,
        "command_line": machine.line,
        "memory_mib": machine.memory,
        "cpus": machine.cpus,
        "samples": samples,
        "ratio": ratio(samples),
        "exits": [{"device": name, "access": how, "count": count} for name, how, count in exits],
        "initcalls_ms": dict(calls),
    }
    write(figures, options.output, "boot", lambda path: plot(samples, exits, calls, path))
    return 0
