"""Hosts that lack something: descriptors, memory, system calls. One line each, and nothing left half made."""

import errno
import os
import resource
import subprocess
import sys

import pytest

from pyvmm import VM
from pyvmm.errors import PyvmmError
from pyvmm.kvm import descriptor
from tests.kvm.test_lifecycle import footprint
from tests.support import guests
from tests.support.cli import LIMIT, PYVMM, environment

pytestmark = pytest.mark.needs("kvm")


@pytest.fixture
def kernel(tmp_path):
    path = tmp_path / "kernel.bin"
    path.write_bytes(guests.EXIT_5)
    return path


def start(kernel):
    """Run it; True, or False after an error that is one line."""
    try:
        with VM(kernel, mem="1M", cpus=2, timeout=20) as vm:
            assert vm.wait(20).status == 11
        return True
    except PyvmmError as error:
        assert str(error) and "\n" not in str(error)
        return False


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EMFILE, errno.EPERM])
def test_each_ioctl_of_the_start_may_fail(kernel, monkeypatch, number):
    assert start(kernel)
    before = footprint()[:3:2]

    class Failing:
        """The compiled module, whose n-th ioctl fails."""

        left = 0

        def __getattr__(self, name):
            return getattr(lib, name)

        def _ioctl(self, call, *arguments):
            self.left -= 1
            return -number if self.left == 0 else call(*arguments)

        def pyvmm_ioctl(self, *arguments):
            return self._ioctl(lib.pyvmm_ioctl, *arguments)

        def pyvmm_ioctl_ptr(self, *arguments):
            return self._ioctl(lib.pyvmm_ioctl_ptr, *arguments)

    lib = descriptor.lib
    failing = Failing()
    monkeypatch.setattr(descriptor, "lib", failing)
    failed = 0
    for nth in range(1, 200):
        failing.left = nth
        failed += not start(kernel)
        assert footprint()[:3:2] == before, f"ioctl {nth} failed and something is left"
        if failing.left > 0:
            break
    assert failing.left > 0, "the loop is too short"
    assert failed > 20


def test_each_descriptor_may_be_the_one_too_many(kernel):
    assert start(kernel)
    before = footprint()[:3:2]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    worked = []
    try:
        for limit in range(lowest_free, highest + 12):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            worked.append(start(kernel))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert worked == sorted(worked), "worked with fewer descriptors than failed"
    assert not worked[0] and worked[-1]
    assert footprint()[:3:2] == before


def under_seccomp(names, program):
    code = f"from tests.support.seccomp import forbid; import os, sys; forbid(*{names!r}); {program}"
    return subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT, env=environment()
    )


def test_under_a_seccomp_filter(kernel):
    """What container runtimes forbid is not needed for a plain run."""
    names = ("madvise", "unshare", "memfd_create", "userfaultfd", "io_uring_setup")
    done = under_seccomp(names[1:], f"os.execv(sys.executable, {[*PYVMM, 'run', str(kernel)]!r})")
    assert (done.returncode, done.stdout, done.stderr) == (11, b"", b"")


def test_what_needs_a_forbidden_system_call_says_so(kernel):
    program = f"from pyvmm import VM; VM({str(kernel)!r}, memory_backing='memfd').start()"
    done = under_seccomp(["memfd_create"], program)
    last = done.stderr.decode().splitlines()[-1]
    assert last == "pyvmm.errors.PyvmmError: cannot map 128 MiB of guest RAM (memfd): Operation not permitted"


@pytest.fixture
def group():
    """A control group of its own with the limits that the test names: (controller, file, value)."""
    made = ""

    def make(controller, file, value):
        nonlocal made
        path = f"/sys/fs/cgroup/{controller}/pyvmm-test-{os.getpid()}"
        try:
            os.makedirs(path, exist_ok=True)
            made = path
            with open(f"{path}/{file}", "w") as limit:
                limit.write(str(value))
        except OSError as error:
            pytest.skip(f"no {controller} cgroup can be made here: {error.strerror}")
        return path

    yield make
    if made:
        os.rmdir(made)


def run_in(group, *arguments):
    command = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *PYVMM, "run", *map(str, arguments)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT, env=environment())


@pytest.mark.needs("root")
def test_each_thread_may_be_the_one_too_many(group, kernel):
    """Threads of KVM's own count too: a KVM_RUN that cannot have one says EAGAIN for ever."""
    statuses = []
    for threads in range(1, 12):
        done = run_in(group("pids", "pids.max", threads), kernel, "--timeout", "20s")
        statuses.append(done.returncode)
        if done.returncode == 11:
            break
        assert done.returncode == 125
        assert done.stderr.count(b"\n") == 1 and b"thread" in done.stderr and b"internal" not in done.stderr
    assert statuses[-1] == 11 and len(statuses) > 3


@pytest.mark.needs("root")
def test_a_memory_cgroup_smaller_than_the_guest(group, tmp_path, kernel):
    """The kernel kills what uses more than its group may: the user is told beforehand."""
    path = group("memory", "memory.limit_in_bytes", 96 << 20)
    fill = tmp_path / "fill.bin"
    # mov $1 MiB, %edi; 1: movb $7, (%edi); add $4096, %edi; cmp $480 MiB, %edi; jb 1b; mov $5, %al; out %al, $0xf4
    fill.write_bytes(bytes.fromhex("bf00001000 c60707 81c700100000 81ff0000001e 72ef b005 e6f4"))
    for guest, statuses in ((fill, (-9, 137)), (kernel, (11,))):
        done = run_in(path, guest, "--mem", "512M", "--flat-mode", "protected", "--timeout", "30s")
        assert done.returncode in statuses, done.stderr
        assert done.stderr == (
            b"pyvmm: the memory cgroup allows 96M, less than the guest's 512M: "
            b"if the guest uses all its RAM, the kernel kills pyvmm\n"
        )
