"""The pytest plugin's fixtures with real VMs, of a few bytes of machine code."""

from __future__ import annotations

import sys

import pytest

from pyvmm.trace.reader import read
from tests.support import guests

pytest_plugins = ("pytester",)
pytestmark = pytest.mark.needs("kvm")


@pytest.fixture(autouse=True)
def suite(pytester: pytest.Pytester) -> None:
    for name in ("EXIT_5", "SPIN"):
        (pytester.path / f"{name.lower()}.bin").write_bytes(getattr(guests, name))
    (pytester.path / "says.bin").write_bytes(guests.says(b"first line\r\nlast words\r\n"))


def test_a_vm_of_any_settings_runs_and_is_closed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        MADE = []

        @pytest.mark.vm(mem="2M")
        def test_it(vm_factory):
            MADE.append(vm_factory("exit_5.bin"))
            assert MADE[0].wait(20).status == 11 and MADE[0].memory.regions[0].length == 2 << 20
            MADE.append(vm_factory("spin.bin", mem="1M", paused=True))
            assert MADE[1].state == "paused"

        def test_after():
            assert [vm.vcpus[0].fileno() for vm in MADE] == [-1, -1]
            assert [vm.state for vm in MADE] == ["ended", "ended"]
        """
    )
    pytester.runpytest("--strict-markers").assert_outcomes(passed=2)


def test_a_trace_is_kept_of_each_vm_of_a_test_that_fails(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_good(vm_factory):
            assert vm_factory("exit_5.bin").wait(20).status == 11

        def test_bad(vm_factory):
            for _ in range(2):
                vm_factory("says.bin", mem="1M").wait(20)
            assert False
        """
    )
    result = pytester.runpytest("--vm-trace", "traces")
    result.assert_outcomes(passed=1, failed=1)
    kept = sorted((pytester.path / "traces").iterdir())
    assert [path.name.rpartition("test_bad-")[2] for path in kept] == ["says.bin-1.trace", "says.bin-2.trace"]
    assert all(any(record["kind"] == "end" for record in read(path).records()) for path in kept)
    result.stdout.fnmatch_lines([f"trace: {kept[0]} (pyvmm trace summary)"])


def test_a_failure_shows_console_exits_and_registers_whatever_state_the_vm_is_in(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_ended(vm_factory):
            vm_factory("says.bin", mem="1M").wait(20)
            assert False

        def test_running(vm_factory):
            vm = vm_factory("spin.bin", mem="1M")
            assert False

        def test_closed(vm_factory):
            with vm_factory("spin.bin", mem="1M", paused=True).still():
                pass
            vm_factory("spin.bin", mem="1M").close()
            assert False
        """
    )
    result = pytester.runpytest()
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(
        [
            "ended after * s by debug-exit: *says.bin, 1M, 1 CPU",
            "  | first line",
            "  | last words",
            "  rax 00000000 *",
            "  last exits, oldest first:",
            "*IO out port 0xf4 size 1 <- 0x00",
            "*running for * s: *spin.bin, 1M, 1 CPU",
            "  (the guest wrote nothing)",
            "  rip 00007c00",
            "paused for * s: *spin.bin*",
            "*- pyvmm: spin.bin 2 -*",
            "ended after * s by stopped: *",
            "closed: no registers any more",
        ]
    )


def test_a_guest_is_ended_by_the_time_limit_which_the_report_names(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        def test_it(vm_factory):
            assert vm_factory("spin.bin", mem="1M").wait(20).reason == "debug-exit"
        """
    )
    result = pytester.runpytest("--vm-timeout", "200ms")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["ended after 0.2 s by time-limit: the time limit of 0.2 s was reached (another limit: --vm-timeout, *"]
    )


def test_no_vm_is_left_when_a_run_is_interrupted(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_it(vm_factory):
            vm_factory("spin.bin", mem="1M")
            raise KeyboardInterrupt
        """
    )
    pytester.makeconftest(
        """
        import threading

        def pytest_unconfigure(config):
            print("threads:", [thread.name for thread in threading.enumerate()])
        """
    )
    result = pytester.runpytest_subprocess("-s")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "vcpu" not in result.stdout.str().partition("threads:")[2]


@pytest.mark.needs("coverage")
def test_under_coverage_a_vm_runs_and_the_suites_own_lines_are_counted(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(mine="def use(vm):\n    return vm.wait(20).status\n\n\ndef never():\n    return 1\n")
    pytester.makepyfile("import mine\n\ndef test_it(vm_factory): assert mine.use(vm_factory('exit_5.bin')) == 11\n")
    pytester.run(sys.executable, "-m", "coverage", "run", "-m", "pytest", "-p", "no:cacheprovider").assert_outcomes(
        passed=1
    )
    shown = pytester.run(sys.executable, "-m", "coverage", "report", "-m", "--include", "mine.py").stdout
    shown.fnmatch_lines("mine.py * 75% * 6")


def test_two_workers_have_vms_at_once(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("number", range(6))
        def test_it(vm_factory, number):
            assert vm_factory("exit_5.bin", mem="1M").wait(20).status == 11
        """
    )
    pytester.runpytest_subprocess("-n", "2").assert_outcomes(passed=6)


def test_the_names_of_the_testing_package_can_be_imported() -> None:
    from pyvmm import testing

    for name in testing.__all__:
        assert getattr(testing, name).__name__ == name
    with pytest.raises(AttributeError, match="VmFac"):
        _ = testing.VmFac
