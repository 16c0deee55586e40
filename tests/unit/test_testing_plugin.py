"""The pytest plugin as a guest in other people's suites: on suites of its own, with VMs that are none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pyvmm.kvm  # here, or each run of pytest within this one would have its own
from pyvmm.config import VmConfig
from pyvmm.errors import KvmUnavailableError
from pyvmm.testing import fixtures
from pyvmm.testing.network import VmNet
from pyvmm.testing.snapshots import SharedSnapshots

pytest_plugins = ("pytester",)

NAMES = ("vm", "vm_factory", "vm_session", "vm_snapshot", "vm_net")
FAKES = """
import pyvmm.testing.fixtures as fixtures

LOG = []


class Console:
    text = ""


class FakeVm:
    trace = None
    vcpus, loops, exit, state, console_log = (), (), None, "running", b"first\\nlast words\\n"
    findings = ()

    def __init__(self, config, **own):
        self.config, self.own = config, own
        self.stats = type("Stats", (), {"seconds": 1.25})
        self.guest = self

    @classmethod
    def restore(cls, path, **others):
        LOG.append(f"restore {path} {others}")
        return cls(fixtures.VmConfig(path))

    def start(self):
        if self.config.append == "broken":
            raise fixtures.PyvmmError("it does not start")
        LOG.append(f"start {self.config.kernel}")

    def wait_ready(self, timeout):
        LOG.append(f"ready within {timeout:g}")

    def stop(self, outcome):
        LOG.append(f"{outcome.reason}: {outcome.detail}")

    def close(self):
        LOG.append(f"close {self.config.kernel}")
        if "bad" in self.config.append:
            raise fixtures.PyvmmError("it does not close")


fixtures.VM = FakeVm
fixtures._no_kvm = lambda: ""


def pytest_unconfigure(config):
    print("\\nlog:", *LOG, sep="\\n")
"""


@pytest.fixture(autouse=True)
def elsewhere(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYVMM_REQUIRE", "PYTEST_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYVMM_NO_KVM", "1")
    # Other plugins take their time, each time. That ours is loaded by its entry point is tried where it matters.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p pyvmm")


@pytest.fixture
def all_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name)


def log(result: pytest.RunResult) -> list[str]:
    lines = result.outlines
    return lines[lines.index("log:") + 1 :]


@pytest.fixture
def fakes(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    for name in ("VM", "_no_kvm"):
        monkeypatch.setattr(fixtures, name, getattr(fixtures, name))
    pytester.makeconftest(FAKES)
    return pytester


# --- A guest -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("all_plugins")
def test_until_a_fixture_is_used_nothing_of_pyvmm_is_imported(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_it():
            found = sorted(name for name in sys.modules if name.partition(".")[0] == "pyvmm")
            assert found == ["pyvmm", "pyvmm.testing", "pyvmm.testing.plugin"]
        """
    )
    pytester.runpytest_subprocess("--strict-markers", "--strict-config").assert_outcomes(passed=1)


@pytest.mark.serial
def test_it_takes_under_5_ms_at_start(tmp_path: Path) -> None:
    program = "\n".join(
        (
            "import sys, time, pytest",
            "began = time.perf_counter()",
            "import pyvmm.testing.plugin",
            "print(time.perf_counter() - began)",
        )
    )
    took = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-B", "-c", program], capture_output=True, text=True, timeout=60, check=True
        )
        took.append(float(done.stdout))
    assert min(took) < 0.005, took


@pytest.mark.usefixtures("all_plugins")
def test_it_can_be_left_out(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(vm): pass")
    result = pytester.runpytest("-p", "no:pyvmm")
    result.stdout.fnmatch_lines("*fixture 'vm' not found*")
    assert "--vm-kernel" not in pytester.runpytest("-p", "no:pyvmm", "--help").stdout.str()


@pytest.mark.usefixtures("all_plugins")
def test_a_suites_own_fixtures_and_mark_of_the_same_names_are_its_own(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture
        def vm(request):
            return request.node.get_closest_marker("vm").args

        @pytest.fixture(scope="session")
        def vm_session():
            return "theirs"
        """
    )
    pytester.makepyfile(
        """
        import pytest, sys

        @pytest.mark.vm("esx", 3, host="somewhere")
        def test_it(vm, vm_session):
            assert vm == ("esx", 3) and vm_session == "theirs"
            assert "pyvmm.vm" not in sys.modules
        """
    )
    pytester.runpytest_subprocess("--strict-markers").assert_outcomes(passed=1)


@pytest.mark.parametrize("how", ["option", "ini"])
def test_a_prefix_gives_the_fixtures_and_the_mark_other_names(fakes: pytest.Pytester, how: str) -> None:
    if how == "ini":
        fakes.makeini("[pytest]\nvm_prefix = py_\n")
    fakes.makepyfile(
        """
        import pytest

        @pytest.mark.py_vm(mem="64M")
        def test_it(py_vm_factory):
            assert py_vm_factory("kernel").config.mem == 64 << 20

        @pytest.mark.py_vm(memory="64M")
        def test_wrong(py_vm_factory):
            pass
        """
    )
    result = fakes.runpytest("--strict-markers", *(["--vm-prefix", "py_"] if how == "option" else []))
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines("*@pytest.mark.py_vm of *::test_wrong: there is no setting 'memory'*")
    shown = fakes.runpytest("--fixtures", *(["--vm-prefix", "py_"] if how == "option" else [])).stdout.str()
    for name in NAMES:
        assert f"\npy_{name} " in shown and f"\n{name} " not in shown


def test_options_fixtures_and_the_mark_are_described(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--help")
    result.stdout.fnmatch_lines(["virtual machines (pyvmm):", "*--vm-kernel=NAME|PATH*", "*--vm-timeout=TIME*"])
    result.stdout.fnmatch_lines(["*vm_timeout (string):*"])
    pytester.runpytest("--markers").stdout.fnmatch_lines("@pytest.mark.vm(mem=, cpus=, kernel=, ...): *")
    shown = pytester.runpytest("--fixtures").stdout.str()
    assert "A clone of a booted Linux with the agent" in shown


# --- What the machine lacks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("required", [False, True])
def test_without_kvm_a_test_is_skipped_with_the_cause_or_fails_where_kvm_is_required(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, required: bool
) -> None:
    monkeypatch.setenv("PYVMM_REQUIRE", "gcc,kvm" if required else "gcc")
    pytester.makepyfile("".join(f"def test_{name}({name}): pass\n" for name in NAMES))
    result = pytester.runpytest("-rs")
    if not required:
        result.assert_outcomes(skipped=len(NAMES))
        result.stdout.fnmatch_lines("SKIPPED*needs kvm: PYVMM_NO_KVM=1")
        return
    result.assert_outcomes(errors=len(NAMES))
    result.stdout.fnmatch_lines("PYVMM_REQUIRE lists kvm, but PYVMM_NO_KVM=1")
    assert "Traceback" not in result.stdout.str()


def test_kvms_own_reason_is_the_cause(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> None:
        raise KvmUnavailableError("/dev/kvm: may not be opened: join the group kvm")

    monkeypatch.delenv("PYVMM_NO_KVM")
    monkeypatch.setattr(pyvmm.kvm, "Kvm", unavailable)
    pytester.makepyfile("def test_it(vm_factory): pass")
    result = pytester.runpytest("-rs")
    result.stdout.fnmatch_lines("SKIPPED*needs kvm: /dev/kvm: may not be opened: join the group kvm")


@pytest.mark.parametrize("required", ["", "tiny-image"])
def test_without_the_image_the_command_that_builds_it_is_said(
    fakes: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, required: str
) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(fakes.path / "empty"))
    monkeypatch.setenv("PYVMM_REQUIRE", required)
    fakes.makepyfile("def test_fixture(vm): pass\ndef test_call(vm_factory): vm_factory()")
    result = fakes.runpytest("-rsfE")
    result.assert_outcomes(**({"errors": 1, "failed": 1} if required else {"skipped": 2}))
    result.stdout.fnmatch_lines("*the image tiny is not built yet: pyvmm image build tiny*")


# --- Settings ----------------------------------------------------------------------------------------------------


WRONG_MARKS = {
    'memory="64M"': "there is no setting 'memory' (did you mean mem?)",
    "zzz=1": "there is no setting 'zzz' (there are kernel, *",
    '"64M"': "'64M' needs a name (as in mem='64M')",
    'mem="12Q"': "'12Q' is not a size *",
    "cpus=0": "0 CPUs: expected 1 to 255",
    'cpus="two"': "*",
    'timeout="soon"': "'soon' is not a duration *",
}


def test_a_wrong_mark_is_an_error_that_names_the_test_with_kvm_or_without(pytester: pytest.Pytester) -> None:
    lines = ["import pytest"]
    expected = []
    for fixture in ("vm_factory", "vm_snapshot"):
        for number, (mark, text) in enumerate(WRONG_MARKS.items()):
            lines.append(f"@pytest.mark.vm({mark})\ndef test_{fixture}_{number}({fixture}): pass")
            expected.append(f"@pytest.mark.vm of *::test_{fixture}_{number}: {text}")
    pytester.makepyfile("\n".join(lines))
    result = pytester.runpytest("--strict-markers")
    result.assert_outcomes(errors=len(expected))
    result.stdout.fnmatch_lines(expected)
    assert "Traceback" not in result.stdout.str() and "another exception" not in result.stdout.str()


def test_the_nearest_word_counts_call_mark_class_module(fakes: pytest.Pytester) -> None:
    fakes.makepyfile(
        """
        import pytest

        pytestmark = pytest.mark.vm(mem="64M", cpus=2, append="module", timeout=7)

        @pytest.mark.vm(cpus=3, append="class")
        class TestIt:
            @pytest.mark.vm(append="test")
            def test_it(self, vm_factory):
                config = vm_factory("kernel", cpu="host,-x2apic").config
                assert (config.mem, config.cpus, config.append, config.timeout) == (64 << 20, 3, "test", 7)
                assert vm_factory("kernel", append="call", timeout="8s").config.append == "call"
        """
    )
    fakes.runpytest().assert_outcomes(passed=1)


def test_options_come_before_the_ini_file_and_are_for_linux_guests(fakes: pytest.Pytester) -> None:
    fakes.makeini(
        "[pytest]\nvm_kernel = images/bzImage\nvm_initrd = images/i.cpio\nvm_mem = 96M\nvm_cpus = 2\n"
        "vm_timeout = 2m\nvm_append = from the file\n"
    )
    fakes.makepyfile(
        f"""
        import pytest

        ROOT = {str(fakes.path)!r}

        def test_linux(vm):
            config = vm.config
            assert (config.kernel, config.initrd) == (ROOT + "/images/bzImage", ROOT + "/images/i.cpio")
            assert (config.mem, config.cpus, config.timeout, config.agent) == (80 << 20, 2, 120, True)
            assert config.append == "quiet from the file"

        @pytest.mark.vm(append="and the mark", mem="48M", initrd=None)
        def test_mark(vm):
            assert vm.config.append == "quiet from the file and the mark"
            assert (vm.config.mem, vm.config.initrd) == (48 << 20, None)

        def test_other_guest(vm_factory):
            config = vm_factory("flat.bin").config
            assert (config.kernel, config.initrd, config.append, config.agent) == ("flat.bin", None, "", False)
            assert config.timeout == 120
        """
    )
    fakes.runpytest("--vm-mem", "80M").assert_outcomes(passed=3)


@pytest.mark.parametrize(
    ("arguments", "ini", "text"),
    [
        (["--vm-timeout", "soon"], "", "--vm-timeout: 'soon' is not a duration *"),
        ([], "vm_timeout = 0s", "vm_timeout in *tox.ini: '0s': a time limit must be longer than nothing"),
        (["--vm-cpus", "many"], "", "--vm-cpus: 'many' is no number of CPUs"),
    ],
)
def test_a_wrong_option_is_an_error_that_names_it(
    fakes: pytest.Pytester, arguments: list[str], ini: str, text: str
) -> None:
    fakes.makeini(f"[pytest]\n{ini}\n")
    fakes.makepyfile("def test_it(vm_factory): pass")
    result = fakes.runpytest(*arguments)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(text)


def test_a_guest_without_a_time_limit_is_not_to_be_had(fakes: pytest.Pytester) -> None:
    fakes.makepyfile("def test_it(vm_factory): assert vm_factory('kernel', timeout=None).config.timeout == 5")
    fakes.runpytest("--vm-timeout", "5s").assert_outcomes(passed=1)


def test_a_clone_is_of_a_snapshot_by_its_settings_and_may_have_others(
    fakes: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(self: object, config: VmConfig, who: str) -> str:
        return f"snapshot-of-{config.mem >> 20}M-{len(config.disks)}-disks-{who.rpartition('::')[2]}"

    monkeypatch.setattr(SharedSnapshots, "get", get)
    fakes.makepyfile(
        """
        import pytest
        from conftest import LOG

        @pytest.mark.vm(mem="64M")
        def test_it(vm_factory):
            vm_factory.clone({"disks": ["copy"]}, disks=["image"], timeout=9)

        @pytest.mark.vm(mem="32M", agent=False)
        def test_wrong(vm_snapshot): pass
        """
    )
    result = fakes.runpytest("-s", "--vm-kernel", "/k", "--vm-initrd", "i")
    result.assert_outcomes(passed=1, errors=1)
    assert log(result)[0] == "restore snapshot-of-64M-1-disks-test_it {'timeout': 9, 'disks': ['copy']}"
    result.stdout.fnmatch_lines("a snapshot is made when the agent answers: agent=False cannot be")


@pytest.mark.parametrize("length", [10, 90])
def test_the_socket_of_a_network_has_a_path_that_is_short_enough(tmp_path: Path, length: int) -> None:
    base = tmp_path / ("x" * length)
    base.mkdir()
    net = VmNet(None, str(base))  # type: ignore[arg-type]
    assert len(net.path) <= 107
    folder = Path(net.path).parent
    assert folder.is_dir() and (folder.parent == base) == (len(str(base)) <= 80)
    net.close()
    assert not folder.exists()


def test_arguments_of_vm_that_are_no_settings_reach_it(fakes: pytest.Pytester) -> None:
    fakes.makepyfile("def test_it(vm_factory): assert vm_factory('kernel', paused=True).own == {'paused': True}")
    fakes.runpytest().assert_outcomes(passed=1)


# --- Closing -----------------------------------------------------------------------------------------------------


def test_all_are_closed_last_first_when_the_test_fails_and_when_one_does_not_close(fakes: pytest.Pytester) -> None:
    fakes.makepyfile(
        """
        import pytest

        def test_it(vm_factory):
            vm_factory("one"), vm_factory("two", append="bad"), vm_factory("three")
            assert False

        def test_next(vm_factory):
            with pytest.raises(Exception, match="it does not start"):
                vm_factory("four", append="broken")
        """
    )
    result = fakes.runpytest("-s")
    result.assert_outcomes(failed=1, errors=1, passed=1)
    result.stdout.fnmatch_lines("*PyvmmError: it does not close")
    assert log(result)[:6] == ["start one", "start two", "start three", "close three", "close two", "close one"]


@pytest.mark.parametrize("scope", ["vm_factory", "vm_session"])
def test_all_are_closed_when_the_run_is_interrupted(fakes: pytest.Pytester, scope: str) -> None:
    call = "vm_factory('one')" if scope == "vm_factory" else "pass"
    fakes.makepyfile(
        f"""
        import pytest

        def test_it({scope}):
            {call}
            raise KeyboardInterrupt
        """
    )
    result = fakes.runpytest_subprocess("-s", "--vm-kernel", str(fakes.path / "one"), "--vm-initrd", "i")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert [line.partition(" ")[0] for line in log(result) if not line.startswith("ready")] == ["start", "close"]


def test_the_session_has_one_vm_that_is_ended_by_a_test_that_takes_too_long(fakes: pytest.Pytester) -> None:
    fakes.makepyfile(
        """
        import time
        from conftest import LOG

        def test_quick(vm_session):
            assert vm_session.config.timeout is None

        def test_slow(vm_session):
            deadline = time.monotonic() + 20
            while not LOG[-1].startswith("time-limit") and time.monotonic() < deadline:
                time.sleep(0.005)

        def test_none(): time.sleep(0.1)
        """
    )
    result = fakes.runpytest("-s", "--vm-kernel", "/k", "--vm-initrd", "i", "--vm-timeout", "50ms")
    result.assert_outcomes(passed=3)
    limit = "time-limit: the time limit of 0.05 s for one test was reached"
    assert log(result)[:4] == ["start /k", "ready within 0.05", limit, "close /k"]


def test_a_mark_for_the_vm_of_the_session_is_an_error(fakes: pytest.Pytester) -> None:
    fakes.makepyfile(
        """
        import pytest

        @pytest.mark.vm(mem="64M")
        def test_wrong(vm_session): pass

        @pytest.mark.vm(mem="64M")
        def test_right(vm_session, vm_factory): pass
        """
    )
    result = fakes.runpytest("--vm-kernel", "/k", "--vm-initrd", "i")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines("@pytest.mark.vm of *::test_wrong: the VM of the session is everybody's")


# --- Reports -----------------------------------------------------------------------------------------------------


def test_a_failure_shows_each_vm_of_the_test_and_no_other(fakes: pytest.Pytester) -> None:
    fakes.makepyfile(
        """
        def test_well(vm_factory):
            vm_factory("well")

        def test_ill(vm_factory):
            vm_factory("/boot/ill", mem="64M", cpus=2)
            vm_factory("/boot/ill", mem="128M")
            assert False
        """
    )
    result = fakes.runpytest()
    result.stdout.fnmatch_lines(
        [
            "*- pyvmm: ill 1 -*",
            "running for 1.2 s: /boot/ill, 64M, 2 CPUs",
            "console, the last lines:",
            "  | last words",
            "*- pyvmm: ill 2 -*",
            "running for 1.2 s: /boot/ill, 128M, 1 CPU",
        ]
    )
    assert "well, " not in result.stdout.str()


def test_no_vm_is_kept_in_memory_when_its_test_is_over(fakes: pytest.Pytester) -> None:
    fakes.makepyfile(
        """
        import gc, weakref

        MADE = []

        def test_it(vm_factory):
            MADE.append(weakref.ref(vm_factory("kernel")))

        def test_after():
            gc.collect()
            assert MADE[0]() is None
        """
    )
    fakes.runpytest().assert_outcomes(passed=2)


def test_a_vm_that_does_not_come_up_is_shown_too(fakes: pytest.Pytester) -> None:
    fakes.makepyfile(
        """
        import conftest

        def no(self, timeout):
            raise conftest.fixtures.PyvmmError("no agent came up in the guest within 5 s")

        def test_it(monkeypatch, request):
            monkeypatch.setattr(conftest.FakeVm, "wait_ready", no)
            request.getfixturevalue("vm")
        """
    )
    result = fakes.runpytest("--vm-kernel", "/k", "--vm-initrd", "i")
    result.stdout.fnmatch_lines(["no agent came up in the guest within 5 s", "*- pyvmm: vm -*", "  | last words"])
    assert "Traceback" not in result.stdout.str()
