"""`pyvmm doctor` without KVM: its report as JSON and as text, its exit status, a missing compiled module."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyvmm.cli import doctor
from pyvmm.errors import UsageError
from pyvmm.kvm import hostcheck, hostvirt, native
from pyvmm.kvm.caps import CAPABILITIES
from tests.support.hosttree import AMD, INTEL, FakeHost


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "PROBLEM", "")


def examine(host: FakeHost) -> dict[str, Any]:
    report = doctor.examine(host.view(), measure=False)
    assert not host.leaked()
    assert json.loads(json.dumps(report)) == report
    return report


def text(report: dict[str, Any], **options: bool) -> str:
    return "\n".join(doctor.lines(report, **options))


def command(monkeypatch: pytest.MonkeyPatch, host: FakeHost, *argv: str) -> int:
    """Run the verb on a made-up host."""
    view = host.view()
    monkeypatch.setattr("pyvmm.kvm.host.HostView", lambda: view)
    return doctor.main(list(argv))


@pytest.mark.usefixtures("built")
def test_a_usable_host(host: FakeHost) -> None:
    host.usable("kvm_amd")
    host.cpu(AMD, "svm")
    report = examine(host)
    assert report["schema"] == 1
    assert report["usable"] is True
    assert report["problem"] is None
    assert report["compiled"] is True
    assert report["machine"] == {
        "system": "Linux",
        "release": host.release,
        "architecture": "x86_64",
        "processor": "A Processor",
    }
    assert report["kvm"]["usable"] is True
    assert report["kvm"]["api_version"] == 12
    assert report["kvm"]["module"] == "amd"
    assert report["kvm"]["nested"] is False
    assert report["quirks"] == {} and report["features_hidden"] == []
    assert report["costs"] is None and report["costs_missing"] == "not asked for"
    assert [row["name"] for row in report["kvm"]["capabilities"]] == [row.name for row in CAPABILITIES]
    assert report["kvm"]["capabilities"][0] == {
        "number": 0,
        "name": "KVM_CAP_IRQCHIP",
        "value": 1,
        "required": True,
        "since": "2.6.25",
        "use": "interrupt controllers in the kernel",
    }


@pytest.mark.usefixtures("built")
def test_the_text_names_module_version_and_uses(host: FakeHost) -> None:
    host.usable()
    host.cpu(INTEL, "vmx hypervisor")
    shown = text(examine(host))
    assert shown.startswith("KVM is usable")
    assert "kvm_intel, nested: this machine is itself a virtual machine" in shown
    assert "API version  12" in shown
    assert "immediate_exit!" in shown and "stopping a vCPU without losing a race" in shown
    assert "What is different" not in shown
    assert "x86_smm" not in shown
    assert "x86_smm" in text(examine(host), everything=True)


@pytest.mark.usefixtures("built")
def test_a_missing_optional_capability_is_shown_with_its_linux(host: FakeHost) -> None:
    host.usable()
    host.missing = frozenset({203})
    report = examine(host)
    assert report["usable"] is True
    (line,) = [line for line in text(report).splitlines() if "binary_stats_fd" in line]
    assert line.split()[0] == "no" and "since Linux 5.14" in line


@pytest.mark.usefixtures("built")
def test_quirks_and_hidden_features_are_told(host: FakeHost) -> None:
    host.usable("kvm_pvm")
    report = examine(host)
    assert "ring0_emulated" in report["quirks"]
    assert "cx16" in report["features_hidden"]
    shown = text(report)
    assert "instruction emulator" in shown
    assert "kvm_pv_unhalt" in shown
    assert all(len(line) <= 120 for line in shown.splitlines())


@pytest.mark.usefixtures("built")
def test_what_is_wrong_and_what_mends_it_come_first(host: FakeHost) -> None:
    host.cpu(INTEL, "vmx")
    report = examine(host)
    assert report["usable"] is False and report["kvm"]["usable"] is False
    assert report["problem"] == {
        "cause": "module",
        "line": "the kernel module kvm_intel is not loaded",
        "mend": "sudo modprobe kvm_intel",
        "then": "",
    }
    assert report["kvm"]["api_version"] is None and report["kvm"]["capabilities"] == []
    assert report["costs_missing"] == "KVM is not usable"
    assert "Costs" not in text(report) and "Capabilities" not in text(report)
    head = text(report).splitlines()[:5]
    assert head[0] == "pyvmm cannot run guests here."
    assert head[2].split(None, 1) == ["problem", "the kernel module kvm_intel is not loaded"]
    assert head[3].endswith("sudo modprobe kvm_intel")


@pytest.mark.usefixtures("built")
def test_a_device_that_is_not_kvm(host: FakeHost) -> None:
    host.usable()
    host.api_version = -1
    report = examine(host)
    assert report["problem"]["cause"] == "not-a-device"
    assert report["kvm"]["api_version"] is None


def test_without_the_compiled_module_it_says_how_to_build_it(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "PROBLEM", "the extension module is not built here")
    host.usable()
    report = examine(host)
    assert report["usable"] is False and report["compiled"] is False
    assert report["problem"]["cause"] == "not-built"
    assert "pip install" in report["problem"]["mend"]
    # What the host can do is told all the same.
    assert report["kvm"]["usable"] is True
    assert report["kvm"]["api_version"] == 12 and report["kvm"]["capabilities"]
    assert "compiled     no" in text(report)


def test_a_host_without_kvm_is_told_of_that_first(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "PROBLEM", "the extension module is not built here")
    host.cpu(AMD, "svm")
    assert examine(host)["problem"]["cause"] == "module"


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(("usable", "status"), [(True, 0), (False, 126)])
@pytest.mark.parametrize("flags", [("--no-measure",), ("--json", "--no-measure"), ("--all", "--no-measure")])
def test_exit_status_and_where_the_report_goes(
    host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    usable: bool,
    status: int,
    flags: tuple[str, ...],
) -> None:
    host.cpu(INTEL, "vmx")
    if usable:
        host.usable()
    assert command(monkeypatch, host, *flags) == status
    out, err = capfd.readouterr()
    assert err == ""
    if "--json" in flags:
        assert json.loads(out)["usable"] is usable
    else:
        assert out.startswith("KVM is usable" if usable else "pyvmm cannot run guests here.")


@pytest.mark.parametrize("argv", [["--jsn"], ["--js"], ["more"]])
def test_wrong_usage_is_status_2(argv: list[str]) -> None:
    with pytest.raises(UsageError, match="unrecognized arguments") as caught:
        doctor.main(argv)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("nanoseconds", "shown"), [(0.29, "0.29 ns"), (263.4, "263 ns"), (999.4, "999 ns"), (8612.0, "8.6 µs")]
)
def test_times_have_their_unit(nanoseconds: float, shown: str) -> None:
    assert doctor._time(nanoseconds) == shown


@pytest.mark.usefixtures("built")
def test_costs_are_shown_as_measured_or_why_not(host: FakeHost) -> None:
    host.usable()
    report = examine(host)
    assert "Costs were not measured: not asked for." in text(report)
    cost = {"median_ns": 8600.0, "least_ns": 8300.0, "most_ns": 9000.0}
    report["costs"] = {
        "rounds": 5,
        "exit_ring0": cost,
        "exit_ring3": cost,
        "instruction_ring0": {**cost, "median_ns": 260.0},
        "ring0_emulated": True,
    }
    rows = text(report).splitlines()
    (exit_row,) = [row for row in rows if "one exit from ring 0" in row]
    assert exit_row.split()[-6:] == ["8.6", "µs", "8.3", "µs", "9.0", "µs"]
    (instruction,) = [row for row in rows if "one instruction" in row]
    assert "260 ns" in instruction and instruction.endswith("emulated")


def test_importing_the_verb_costs_little_and_needs_no_compiled_module() -> None:
    program = "import sys; sys.modules['pyvmm._native._kvm'] = None; import pyvmm.cli.doctor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"argparse", "json", "typing", "cffi"} & set(done.stdout.split())


def document(section: str) -> set[str]:
    """The words in code type that begin the rows of a section's table."""
    whole = (Path(__file__).parents[2] / "docs/doctor.md").read_text()
    part = whole.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
    return {word for row in rows for word in re.findall(r"`([^`]+)`", row)}


def test_the_document_lists_the_causes() -> None:
    sources = "".join(Path(str(module.__file__)).read_text() for module in (hostcheck, hostvirt, doctor))
    used = set(re.findall(r'Problem\(\s*"([a-z-]+)"', sources))
    assert used == document("Problems")
    assert {"permission", "nested", "busy"} <= used


@pytest.mark.usefixtures("built")
def test_the_document_lists_the_fields(host: FakeHost) -> None:
    host.usable()
    report = examine(host)
    fields = {name for name in report if name != "kvm"} | {f"kvm.{name}" for name in report["kvm"]}
    assert fields <= document("JSON")
