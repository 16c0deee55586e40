"""A VM in somebody else's process: what it leaves behind, threads, fork, asyncio, pausing."""

import asyncio
import gc
import os
import sys
import threading
import time

import pytest

from pyvmm import VM
from pyvmm.backends.capture import CaptureConsole
from pyvmm.errors import LoadError, TimeLimitError, UsageError
from tests.support import guests

pytestmark = pytest.mark.needs("kvm")
LIMIT = 20


@pytest.fixture
def image(tmp_path):
    """Writes a guest to a file and returns its path."""

    def write(code, name="guest.bin"):
        path = tmp_path / name
        path.write_bytes(code)
        return path

    return write


def run(path, **settings):
    with VM(path, mem="1M", timeout=LIMIT, **settings) as vm:
        return vm.wait(LIMIT)


def footprint():
    """What this process holds: descriptors, mappings by name and size, threads; and its RSS in bytes."""
    gc.collect()
    fds = sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _alive(fd))
    with open("/proc/self/maps") as lines:
        maps = sorted(_mapping(line) for line in lines)
    with open("/proc/self/statm") as statm:
        rss = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return fds, maps, sorted(os.listdir("/proc/self/task")), rss


def _alive(fd):
    return os.path.islink(f"/proc/self/fd/{fd}")


def _mapping(line):
    span, mode, _, _, _, *name = line.split()
    start, end = (int(address, 16) for address in span.split("-"))
    # The heap and the allocator's arenas grow and shrink as they like; RSS bounds them.
    return (
        (mode, name[0])
        if name and name[0] != "[heap]"
        else ("anonymous",)
        if end - start < 1 << 26
        else (mode, f"{end - start} bytes")
    )


def churn(path, warm_up, count):
    for _ in range(warm_up):
        assert run(path).status == 11
    fds, maps, tasks, rss = footprint()
    for _ in range(count):
        assert run(path).status == 11
    fds_after, maps_after, tasks_after, rss_after = footprint()
    assert fds_after == fds
    assert tasks_after == tasks
    named = [mapping for mapping in maps if mapping[0] != "anonymous"]
    assert [mapping for mapping in maps_after if mapping[0] != "anonymous"] == named
    # A VM's threads end one after the other: how many stacks and arenas libc keeps for others is a matter of time.
    assert abs(len(maps_after) - len(maps)) <= 8, "mappings pile up"
    assert rss_after - rss < 1 << 20, f"RSS grew by {rss_after - rss >> 10} KiB"


@pytest.mark.serial
def test_many_vms_leave_nothing_behind(image):
    churn(image(guests.EXIT_5), 10, 100)


@pytest.mark.serial
@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_thousand_vms_leave_nothing_behind(image):
    churn(image(guests.EXIT_5), 100, 1000)


def test_a_process_that_ends_may_leave_memory_and_descriptors_to_the_kernel(image):
    """And nothing else: the guest stands still, and what is the host's is closed. A later close() does the rest."""
    fds = footprint()[0]
    vm = VM(image(guests.SPIN), mem="1M", timeout=LIMIT)
    vm.start()
    vm.close(leaving=True)
    left = [fd for fd in footprint()[0] if fd not in fds]
    assert any("kvm-vm" in fd for fd in left) and all("kvm" in fd for fd in left)
    assert vm.exit.reason == "stopped"
    vm.close()
    assert footprint()[0] == fds


def test_a_failed_start_leaves_nothing_behind(image, tmp_path):
    run(image(guests.EXIT_5))
    before = footprint()[:3:2]
    with pytest.raises(LoadError):
        run(tmp_path / "missing.bin")
    with pytest.raises(UsageError):
        run(image(guests.EXIT_5), cpu="host,-nosuchfeature")
    assert footprint()[:3:2] == before


def test_two_vms_at_once_from_other_threads(image):
    path, outcomes = image(guests.EXIT_5), []
    both = threading.Barrier(2)

    def body():
        with VM(path, mem="1M", timeout=LIMIT, paused=True) as vm:
            both.wait(LIMIT)
            vm.resume()
            outcomes.append(vm.wait(LIMIT).status)

    threads = [threading.Thread(target=body) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert outcomes == [11, 11]


def test_a_fork_while_a_vm_runs(image):
    with VM(image(guests.SPIN), mem="64M", timeout=LIMIT) as vm:
        child = os.fork()
        if child == 0:
            with open("/proc/self/maps") as maps:
                inherited = any("kvm-vcpu" in line for line in maps)
            os._exit(1 if inherited else 0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, "the child maps the parent's vCPU"
        assert vm.exit is None
        vm.pause()
        vm.resume()
        vm.stop()
        assert vm.wait(LIMIT).reason == "stopped"


@pytest.mark.parametrize("backing", ["anonymous", "memfd"])
def test_a_forked_child_leaves_its_parents_vm_alone(image, backing):
    """It may stop, close and drop the VM, having been given memory where the parent has the guest's RAM."""
    closed = []
    console = CaptureConsole()
    console.close = lambda: closed.append(os.getpid())
    with VM(image(guests.SPIN), mem="64M", timeout=LIMIT, memory_backing=backing, console=console) as vm:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                taken = [bytearray(b"x" * (1 << 20)) for _ in range(100)]
                began = time.monotonic()
                vm.stop()
                vm.close()
                waited = time.monotonic() - began
                del vm
                gc.collect()
                if not closed and waited < LIMIT / 2 and all(block == b"x" * (1 << 20) for block in taken):
                    status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert vm.exit is None
    assert closed == [os.getpid()]


def test_descriptors_do_not_survive_exec(image):
    with VM(image(guests.SPIN), mem="1M", timeout=LIMIT):
        for fd in os.listdir("/proc/self/fd"):
            if _alive(fd) and "kvm" in os.readlink(f"/proc/self/fd/{fd}"):
                assert not os.get_inheritable(int(fd))


def test_in_an_asyncio_program(image):
    async def main():
        ticks = 0
        waiting = asyncio.ensure_future(asyncio.to_thread(run, image(guests.EXIT_5)))
        while not waiting.done():
            ticks += 1
            await asyncio.sleep(0)
        return ticks, waiting.result().status

    ticks, status = asyncio.run(main())
    assert status == 11
    assert ticks > 0


def test_the_switch_interval_is_lowered_counted_and_restored(image):
    before = sys.getswitchinterval()
    with VM(image(guests.SPIN), mem="1M", timeout=LIMIT):
        lowered = sys.getswitchinterval()
        with VM(image(guests.SPIN), mem="1M", timeout=LIMIT):
            pass
        assert sys.getswitchinterval() == lowered < before
    assert sys.getswitchinterval() == before
    with VM(image(guests.SPIN), mem="1M", timeout=LIMIT, switch_interval=None):
        assert sys.getswitchinterval() == before


def test_no_signal_handler_is_touched(image):
    import signal

    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    with VM(image(guests.EXIT_5), mem="1M", timeout=LIMIT) as vm:
        vm.wait(LIMIT)
        assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before


@pytest.mark.parametrize("code", [guests.SPIN, guests.HALT, guests.CHATTER])
def test_time_limit(image, code):
    with VM(image(code), mem="1M", timeout=0.3) as vm:
        outcome = vm.wait(LIMIT)
    assert (outcome.reason, outcome.status) == ("time-limit", 124)
    assert "0.3 s" in outcome.detail
    assert outcome.report is not None


def test_an_nmi_to_a_processor_that_was_never_started_costs_no_cpu(image):
    """KVM wakes such a vCPU for ever and has nothing for it to do."""
    # Protected mode: movl $0x1ff, 0xfee000f0 (APIC on); movl $1 << 24, 0xfee00310; movl $0x4400, 0xfee00300 (NMI to 1)
    send = bytes.fromhex("c705f000e0feff010000 c7051003e0fe00000001 c7050003e0fe00440000")
    with VM(image(send + guests.HALT), mem="2M", cpus=2, flat_mode="protected", timeout=1) as vm:
        began = time.process_time()
        assert vm.wait(LIMIT).reason == "time-limit"
        assert time.process_time() - began < 0.4
        assert vm.stats.exits["INTR"] > 20, "the NMI did not wake it"


def test_waiting_has_a_limit_and_the_vm_runs_on(image):
    with VM(image(guests.SPIN), mem="1M", timeout=LIMIT) as vm:
        with pytest.raises(TimeLimitError):
            vm.wait(0.1)
        assert vm.exit is None


def test_pause_stands_still(image):
    with VM(image(guests.CHATTER), mem="1M", timeout=LIMIT) as vm:
        for _ in range(20):
            vm.pause()
            seen = vm.stats.exits
            time.sleep(0.002)
            assert vm.stats.exits == seen
            vm.resume()
            time.sleep(0.002)


class Halves:
    """Two pages of registers that note the halves of every page-crossing store, slowly enough to be paused between."""

    name = "halves"

    def __init__(self):
        self.lock = threading.Lock()
        self.log = []

    def read(self, offset, size):
        return 0

    def write(self, offset, size, value):
        self.log.append((offset, size, value))
        if offset < 0x1000:
            time.sleep(0.002)


def test_a_pause_inside_a_page_crossing_store_completes_it(image):
    """KVM hands out such a store in two exits: a state with one of them done would be no state of the guest."""
    halves = Halves()
    with VM(image(guests.PAGE_CROSSING), mem="2M", flat_mode="protected", timeout=LIMIT, paused=True) as vm:
        vm.machine.mmio.attach(0xD0000000, 0x2000, halves)
        vm.resume()
        turns = 0
        while turns < 30 or len(halves.log) < 30:
            turns += 1
            time.sleep(0.003)
            vm.pause()
            assert vm.exit is None and len(halves.log) % 2 == 0, halves.log[-1:]
            vm.resume()
    assert halves.log[:2] == [(0xFFE, 2, 0x3344), (0x1000, 2, 0x1122)]


def test_a_device_meets_the_odd_parts_of_a_page_crossing_access(image):
    """Three bytes and one: a device may not take sizes for powers of two."""
    halves = Halves()
    store = bytes.fromhex("b844332211 a3fd0f00d0 b005 e6f4")  # mov $0x11223344, %eax; mov %eax, 0xd0000ffd; ...
    with VM(image(store), mem="2M", flat_mode="protected", timeout=LIMIT, paused=True) as vm:
        vm.machine.mmio.attach(0xD0000000, 0x2000, halves)
        vm.resume()
        assert vm.wait(LIMIT).status == 11
    assert halves.log == [(0xFFD, 3, 0x223344), (0x1000, 1, 0x11)]


def test_a_vm_is_used_once(image):
    vm = VM(image(guests.EXIT_5), mem="1M", timeout=LIMIT)
    with pytest.raises(UsageError, match="has not been started"):
        vm.wait()
    with vm:
        with pytest.raises(UsageError, match="started already"):
            vm.start()
        assert vm.wait(LIMIT).status == 11
    vm.close()
    assert vm.exit.status == 11
