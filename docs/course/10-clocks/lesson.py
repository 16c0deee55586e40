"""Four clocks in a guest: left alone, and while the host has other things to do."""

import re
import time

from pyvmm import VM
from pyvmm.images import guest

ROUND = re.compile(r"TSC (\d+) cycles, LAPIC (\d+) ticks, kvmclock (\d+) us")


def clocks():
    return VM(guest("lesson10-clocks").path(), mem="8M", timeout=30)


def rounds(vm):
    """(TSC cycles, ticks of the local APIC's timer, microseconds of kvmclock) of each round."""
    return [tuple(map(int, found)) for found in ROUND.findall(vm.console.text)]


def measure():
    """Ten times 10 ms by the PIT, and who has answered for the clocks."""
    with clocks() as vm:
        vm.wait()
        print(vm.console.text, end="")
        print("port accesses that the VMM saw:", vm.stats.exits["IO"])


def calibrate():
    """What the guest would take the TSC's rate to be, by each round and by kvmclock."""
    with clocks() as vm:
        vm.wait()
        khz = vm.vcpus[0].get_tsc_khz()
        found = rounds(vm)
    by_pit = [tsc // 10 for tsc, _, _ in found]
    by_kvmclock = [tsc * 1000 // us for tsc, _, us in found]
    print(f"by the PIT        {min(by_pit)} to {max(by_pit)} kHz")
    print(f"by kvmclock       {min(by_kvmclock)} to {max(by_kvmclock)} kHz")
    print(f"says KVM          {khz} kHz")


def disturb():
    """The same while the host stops the guest for 50 ms, in the middle of a round."""
    with clocks() as vm:
        vm.console.expect("3 PIT", timeout=20)
        vm.pause()
        time.sleep(0.05)
        vm.resume()
        vm.wait()
        tsc, _, us = max(rounds(vm), key=lambda found: found[2])
    print(f"the longest of the rounds of 10 ms: {us // 1000} ms by kvmclock")
    print(f"a TSC calibrated by it: {tsc // 10} kHz")


def offset():
    """How old the guest takes itself to be."""
    with clocks() as vm:
        vm.wait()
        cycles = vm.vcpus[0].get_msrs([0x10])[0x10]
        seconds = cycles / vm.vcpus[0].get_tsc_khz() / 1000
    print(f"the guest's TSC began {seconds:.3f} s ago, the host's {time.monotonic():.0f} s ago")
