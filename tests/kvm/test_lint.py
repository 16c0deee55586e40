"""`--lint` and `VM(lint=True)` with guests of our own: a bad driver is told of, and good ones are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyvmm import VM, Rng
from pyvmm.images import guest
from tests.support import guests
from tests.support.cli import pyvmm

pytest_plugins = ("pytester",)
pytestmark = pytest.mark.needs("kvm")

BAD = ["features-ok-skipped", "driver-ok-without-queues"]
MMIO = "virtio_mmio.device=4K@0xd0000000:5"
MODES = ("poll", "irq", "masked", "window", "irq flags")
PCI_MODES = ("poll", "irq flags", "irq intx", "irq move")


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.bin"
    path.write_bytes(guests.DRIVER_OK_FIRST)
    return path


def test_the_command_tells_of_findings_as_they_come_and_at_the_end(bad: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = pyvmm("run", bad, "--flat-mode", "protected", "--rng", "--lint", "--report", report, timeout=60)
    assert done.returncode == 11
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith(
        "pyvmm: lint: rng0, Status: the driver set DRIVER_OK without FEATURES_OK before it, at RIP"
    )
    assert lines[2].startswith("pyvmm: lint: 2 findings in 1 accesses and 0 chains")
    assert [line.split()[-1] for line in lines[3:]] == BAD
    found = json.loads(report.read_text())["lint"]
    assert [(finding["rule"], finding["vcpu"], finding["count"]) for finding in found] == [(name, 0, 1) for name in BAD]
    assert found[0]["rip"] in range(0x100000, 0x100010) and found[0]["section"] == "3.1.1"


def test_without_it_nothing_is_said(bad: Path) -> None:
    done = pyvmm("run", bad, "--flat-mode", "protected", "--rng", timeout=60)
    assert (done.returncode, done.stderr) == (11, b"")


def test_the_library_has_the_findings_before_and_after_the_end(bad: Path) -> None:
    with VM(bad, flat_mode="protected", rng=Rng(), lint=True) as vm:
        vm.wait(30)
        assert [finding.name for finding in vm.findings] == BAD
    assert [finding.name for finding in vm.findings] == BAD
    assert vm.judged == (1, 0)


def test_a_test_fails_whose_guests_driver_has_findings(bad: Path, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        f"""
        import pytest
        from pyvmm import Rng

        def run(vm_factory):
            assert vm_factory({str(bad)!r}, flat_mode="protected", rng=Rng()).wait(20).status == 11

        @pytest.mark.vm(lint=True)
        def test_judged(vm_factory):
            run(vm_factory)

        def test_not_judged(vm_factory):
            run(vm_factory)
        """
    )
    result = pytester.runpytest()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["the guest's virtio drivers break the specification:", "*features-ok-skipped, must]"])
    pytester.runpytest("--vm-lint").assert_outcomes(failed=2)


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("words", [*(f"{MMIO} {mode}" for mode in MODES), *PCI_MODES])
def test_our_own_driver_has_no_findings(words: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"hello\n" + bytes(2048 - 6))
    transport = "mmio" if words.startswith(MMIO) else "pci"
    path = guest("virtio-blk").path()
    with VM(path, disks=[disk], transport=transport, append=words, lint=True, timeout=60) as vm:
        vm.wait(60)
    assert [str(finding) for finding in vm.findings] == []
    assert vm.judged[1] == 2
