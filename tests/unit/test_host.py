"""Which KVM a host has, what follows from it, and why there is none: each case in a made-up host."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from pyvmm.kvm.caps import CAPABILITIES
from pyvmm.kvm.cpufeatures import feature_bits
from pyvmm.kvm.host import Host, HostView, Quirks
from pyvmm.kvm.hostcheck import container_kind, diagnose
from pyvmm.kvm.hostvirt import Problem, kernel_log
from tests.support.hosttree import AMD, INTEL, RELEASE, FakeHost


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def problem(host: FakeHost) -> Problem:
    found = diagnose(host.view())
    assert found is not None
    for text in (found.line, found.mend, found.then, str(found)):
        assert "\n" not in text
    assert found.line and found.mend and not found.line.endswith(".")
    assert not host.leaked()
    return found


# --- Which module ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["intel", "amd", "pvm", "elsewhere"])
def test_the_one_module_there_is(host: FakeHost, name: str) -> None:
    host.module("kvm")
    host.module(f"kvm_{name}")
    assert Host(host.view()).module == name


def test_no_module_shows(host: FakeHost) -> None:
    assert Host(host.view()).module == ""
    host.module("kvm")
    assert Host(host.view()).module == ""


@pytest.mark.parametrize(
    ("vendor", "flags", "module"),
    [(INTEL, "vmx", "intel"), (AMD, "svm", "amd"), (INTEL, "hypervisor", "pvm"), (AMD, "", "pvm")],
)
def test_of_built_in_modules_the_processor_decides(host: FakeHost, vendor: str, flags: str, module: str) -> None:
    host.cpu(vendor, flags)
    for name in ("kvm_intel", "kvm_amd") + (("kvm_pvm",) if module == "pvm" else ()):
        host.module(name)
    assert Host(host.view()).module == module


def test_nested_is_the_hypervisor_flag_of_the_first_processor(host: FakeHost) -> None:
    host.cpu(INTEL, "vmx")
    assert not Host(host.view()).nested
    host.cpu(INTEL, "vmx hypervisor")
    assert Host(host.view()).nested


# --- Quirks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["intel", "amd"])
def test_hardware_has_no_quirks(host: FakeHost, name: str) -> None:
    host.module(f"kvm_{name}", ept="Y", npt="1", unrestricted_guest="Y")
    found = Host(host.view())
    assert list(found.quirks) == []
    assert found.without == ()
    assert found.linux_options == ()
    assert found.quirks.ring0_emulated == ""


def test_pvm_has_them_all_but_one(host: FakeHost) -> None:
    host.module("kvm_pvm")
    found = Host(host.view())
    names = {name for name, _ in found.quirks}
    assert names == set(Quirks.__slots__) - {"real_mode_emulated"}
    assert all(sentence.endswith(".") for _, sentence in found.quirks)
    assert set(found.without) == {
        "cx16",
        "kvm_pv_unhalt",
        "kvm_pv_ipi",
        "kvm_pv_sched_yield",
        "kvm_pv_tlb_flush",
    }
    assert set(found.without) <= feature_bits().keys()
    features, mitigations = found.linux_options
    assert features.startswith("clearcpuid=xsave,smap,") and mitigations == "mitigations=off"
    assert len(features) < len("clearcpuid=") + 128  # the buffer that Linux has for the names


@pytest.mark.parametrize(
    ("module", "parameters", "names"),
    [
        ("kvm_intel", {"unrestricted_guest": "N", "ept": "Y"}, ["real_mode_emulated"]),
        ("kvm_intel", {"unrestricted_guest": "N", "ept": "N"}, ["real_mode_emulated", "shadow_paging"]),
        ("kvm_amd", {"npt": "0"}, ["shadow_paging"]),
    ],
)
def test_switched_off_parameters_are_quirks(
    host: FakeHost, module: str, parameters: dict[str, str], names: list[str]
) -> None:
    host.module(module, **parameters)
    assert [name for name, _ in Host(host.view()).quirks] == names


def test_a_quirk_has_a_known_name() -> None:
    with pytest.raises(TypeError, match="slow_disks"):
        Quirks(slow_disks="Yes.")


def test_looking_at_the_host_imports_next_to_nothing() -> None:
    import subprocess

    program = "import sys; from pyvmm.kvm.host import Host; Host(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert not {"typing", "re", "fcntl", "pwd", "subprocess", "pyvmm.kvm.native"} & set(loaded.split())


# --- Usable, or nearly -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["kvm_intel", "kvm_amd", "kvm_pvm"])
def test_nothing_is_wrong_where_a_vm_can_be_made(host: FakeHost, module: str) -> None:
    host.usable(module)
    assert diagnose(host.view()) is None
    assert not host.leaked()
    assert len(host.open_fds) == 2  # /dev/kvm and the VM that proved it, both closed


@pytest.mark.parametrize("version", [0, 11, 13])
def test_another_api_version(host: FakeHost, version: int) -> None:
    host.usable()
    host.api_version = version
    found = problem(host)
    assert found.cause == "api-version"
    assert f"version {version} " in found.line and "12" in found.line


def test_a_device_that_is_not_kvm(host: FakeHost) -> None:
    host.usable()
    host.api_version = -1
    assert problem(host).cause == "not-a-device"


@pytest.mark.parametrize("row", [row for row in CAPABILITIES if row.required], ids=lambda row: row.name)
def test_each_required_capability(host: FakeHost, row: object) -> None:
    host.usable()
    host.missing = frozenset({row.number})  # type: ignore[attr-defined]
    found = problem(host)
    assert found.cause == "capability"
    assert row.name in found.line and f"Linux {row.since}" in found.line  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("module", "holder", "mend"),
    [
        ("vboxdrv", "VirtualBox", "sudo modprobe -r vboxnetadp vboxnetflt vboxdrv"),
        ("vmmon", "VMware", "sudo modprobe -r vmmon"),
        ("", "another hypervisor", "unload its kernel module"),
    ],
)
def test_another_hypervisor_holds_the_processor(host: FakeHost, module: str, holder: str, mend: str) -> None:
    host.usable()
    if module:
        host.module(module)
    host.create_error = errno.EBUSY
    found = problem(host)
    assert found.cause == "busy"
    assert holder in found.line and mend in found.mend


@pytest.mark.parametrize(
    ("error", "mend"),
    [(errno.EMFILE, "ulimit -n"), (errno.ENFILE, "fs.file-max"), (errno.ENOMEM, "memory cgroup")],
)
@pytest.mark.parametrize("where", ["open", "create"])
def test_limits(host: FakeHost, error: int, mend: str, where: str) -> None:
    host.usable()
    if where == "open":
        host.open_error = error
    else:
        host.create_error = error
    found = problem(host)
    assert found.cause == "limit"
    assert os.strerror(error) in found.line and mend in found.mend


def test_a_refusal_that_nobody_foresaw(host: FakeHost) -> None:
    host.usable()
    host.create_error = errno.EOPNOTSUPP
    found = problem(host)
    assert found.cause == "refused" and os.strerror(errno.EOPNOTSUPP) in found.line


def test_a_folder_where_the_device_should_be(host: FakeHost) -> None:
    """What `docker run -v /dev/kvm:/dev/kvm` makes on a host without KVM."""
    host.open_error = errno.EISDIR
    found = problem(host)
    assert found.cause == "not-a-device"
    assert found.mend == "sudo rm -rf /dev/kvm && sudo mknod -m 660 /dev/kvm c 10 232"


# --- Another machine -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sysname", "machine", "cause", "says"),
    [
        ("Darwin", "arm64", "platform", "Darwin"),
        ("FreeBSD", "amd64", "platform", "FreeBSD"),
        ("Linux", "aarch64", "architecture", "aarch64"),
        ("Linux", "riscv64", "architecture", "riscv64"),
    ],
)
def test_another_platform(host: FakeHost, sysname: str, machine: str, cause: str, says: str) -> None:
    host.usable()
    host.sysname, host.machine = sysname, machine
    found = problem(host)
    assert found.cause == cause and says in found.line


# --- No permission ---------------------------------------------------------------------------------------------

GROUPS = "root:x:0:\nkvm:x:108:grace\nada:x:1000:\n"


def test_the_group_to_join_is_named(host: FakeHost) -> None:
    host.write("/etc/group", GROUPS)
    host.node(0o660, 108)
    host.open_error = errno.EACCES
    found = problem(host)
    assert found.cause == "permission"
    assert "group kvm (mode 0660)" in found.line and "user ada is not in" in found.line
    assert found.mend == "sudo usermod -aG kvm ada"
    assert "log in again" in found.then


def test_a_group_joined_since_login(host: FakeHost) -> None:
    host.write("/etc/group", GROUPS)
    host.node(0o660, 108)
    host.open_error = errno.EACCES
    host.user = "grace"
    found = problem(host)
    assert found.cause == "permission"
    assert "not yet in this session" in found.line
    assert found.mend == "newgrp kvm"


def test_a_group_without_a_name(host: FakeHost) -> None:
    host.node(0o660, 4242)
    host.open_error = errno.EACCES
    assert problem(host).mend == "sudo usermod -aG 4242 ada"


@pytest.mark.parametrize(("mode", "gid"), [(0o600, 0), (0o660, 0), (0o600, 108), (0o640, 108)])
def test_without_a_group_of_its_own_it_takes_a_udev_rule(host: FakeHost, mode: int, gid: int) -> None:
    host.write("/etc/group", GROUPS)
    host.node(mode, gid)
    host.open_error = errno.EACCES
    found = problem(host)
    assert found.cause == "permission"
    assert 'KERNEL=="kvm", GROUP="kvm", MODE="0660"' in found.mend
    assert "/etc/udev/rules.d/" in found.mend and "udevadm trigger" in found.mend
    assert "usermod -aG kvm ada" in found.mend


def test_root_is_forbidden_by_something_else(host: FakeHost) -> None:
    host.node(0o660, 108)
    host.uid = 0
    host.open_error = errno.EACCES
    found = problem(host)
    assert found.cause == "forbidden"
    assert "security module" in found.line


def test_a_device_that_may_not_even_be_looked_at(host: FakeHost) -> None:
    host.open_error = errno.EACCES
    assert problem(host).cause == "forbidden"


@pytest.mark.parametrize(("error", "gid"), [(errno.EPERM, 108), (errno.EACCES, 65534)])
def test_a_container_whose_cgroup_or_user_namespace_forbids_it(host: FakeHost, error: int, gid: int) -> None:
    host.node(0o660, gid)
    host.write("/run/.containerenv")
    host.open_error = error
    found = problem(host)
    assert found.cause == "container"
    assert found.mend == "podman run --device /dev/kvm --group-add keep-groups IMAGE"


# --- Not there: containers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text", "environ", "kind"),
    [
        ("/.dockerenv", "", {}, "docker"),
        ("/run/.containerenv", "", {}, "podman"),
        ("/run/systemd/container", "systemd-nspawn\n", {}, "systemd-nspawn"),
        ("/run/systemd/container", "rkt\n", {}, "container"),
        ("/proc/1/cgroup", "12:pids:/docker/0123\n", {}, "docker"),
        ("/proc/1/cgroup", "0::/kubepods/pod1\n", {}, "kubernetes"),
        ("/proc/1/cgroup", "1:name=systemd:/lxc/box\n", {}, "lxc"),
        ("/proc/1/cgroup", "0::/machine.slice/libpod-0123.scope\n", {}, "podman"),
        ("/proc/1/cgroup", "0::/init.scope\n", {}, ""),
        ("/.dockerenv", "", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ("/etc/hostname", "box\n", {"container": "lxc"}, "lxc"),
    ],
)
def test_kinds_of_containers(host: FakeHost, file: str, text: str, environ: dict[str, str], kind: str) -> None:
    host.write(file, text)
    host.environ = environ
    assert container_kind(host.view()) == kind


@pytest.mark.parametrize(
    ("origin", "kind"),
    [("overlay overlay rw,lowerdir=/dev/x", "docker"), ("ext4 /dev/vda rw", ""), ("tmpfs", "docker")],
)
def test_a_machine_made_of_a_container_s_image_is_no_container(host: FakeHost, origin: str, kind: str) -> None:
    host.write("/.dockerenv")
    host.write(
        "/proc/self/mountinfo",
        f"22 1 254:0 / / rw,relatime - {origin}\n23 22 254:1 / /data rw - ext4 /dev/vdb rw\n",
    )
    assert container_kind(host.view()) == kind


def test_a_container_without_the_device(host: FakeHost) -> None:
    host.write("/.dockerenv")
    host.write("/sys/class/misc/kvm/dev", "10:232\n")
    found = problem(host)
    assert found.cause == "container"
    assert found.mend == "docker run --device /dev/kvm IMAGE"


def test_a_container_on_a_host_without_kvm(host: FakeHost) -> None:
    host.write("/.dockerenv")
    host.cpu(INTEL, "vmx")
    found = problem(host)
    assert found.cause == "module"
    assert found.line.startswith("no KVM on the host of this container: ")
    assert found.mend == "sudo modprobe kvm_intel"
    assert "docker run --device /dev/kvm" in found.then


def test_the_node_alone_is_missing(host: FakeHost) -> None:
    host.write("/sys/class/misc/kvm/dev", "10:57\n")
    found = problem(host)
    assert found.cause == "no-node"
    assert found.mend == "sudo mknod -m 660 /dev/kvm c 10 57"


# --- Not there: the module -------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.ENOENT, errno.ENODEV, errno.ENXIO])
@pytest.mark.parametrize(
    ("vendor", "flag", "module"),
    [(INTEL, "vmx", "kvm_intel"), (AMD, "svm", "kvm_amd"), ("HygonGenuine", "svm", "kvm_amd")],
)
def test_a_module_that_is_not_loaded(host: FakeHost, error: int, vendor: str, flag: str, module: str) -> None:
    host.cpu(vendor, flag)
    host.open_error = error
    host.write(f"/lib/modules/{RELEASE}/modules.dep", f"kernel/arch/x86/kvm/{module.replace('_', '-')}.ko.xz:\n")
    found = problem(host)
    assert found.cause == "module"
    assert found.mend == f"sudo modprobe {module}"


def test_where_no_list_of_modules_is_there_modprobe_may_know(host: FakeHost) -> None:
    host.cpu(INTEL, "vmx")
    assert problem(host).mend == "sudo modprobe kvm_intel"


def test_a_kernel_built_without_kvm(host: FakeHost) -> None:
    host.cpu(INTEL, "vmx")
    host.write(f"/lib/modules/{RELEASE}/modules.dep", "kernel/fs/ext4/ext4.ko:\n")
    host.write(f"/lib/modules/{RELEASE}/modules.builtin", "kernel/arch/x86/kvm/kvm-amd.ko\n")
    found = problem(host)
    assert found.cause == "no-module"
    assert "CONFIG_KVM" in found.mend


def test_a_kernel_whose_modules_an_update_has_removed(host: FakeHost) -> None:
    host.cpu(AMD, "svm")
    host.write("/lib/modules/6.1.0-14-amd64/modules.dep", "kernel/arch/x86/kvm/kvm-amd.ko:\n")
    found = problem(host)
    assert found.cause == "no-module"
    assert RELEASE in found.line and found.mend == "sudo reboot"


# --- Not there: firmware ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vendor", "flags", "record"),
    [
        (INTEL, "vmx", "6,1,2,-;kvm: disabled by bios"),
        (INTEL, "", "6,1,2,-;x86/cpu: VMX (outside TXT) disabled by BIOS"),
        (INTEL, "vmx", "3,1,2,-;kvm_intel: VMX not enabled (by BIOS) in MSR_IA32_FEAT_CTL on CPU 0"),
        (AMD, "svm", "6,1,2,-;kvm_amd: SVM disabled (by BIOS) in MSR_VM_CR on CPU 0"),
    ],
)
def test_the_kernel_s_log_blames_the_firmware(host: FakeHost, vendor: str, flags: str, record: str) -> None:
    host.cpu(vendor, flags)
    host.write("/dev/kmsg", f"6,0,1,-;Linux version 6.1\n{record}\n6,3,4,-;random: crng init done\n")
    found = problem(host)
    assert found.cause == "firmware"
    assert "is switched off in the firmware" in found.line
    assert ("VT-x" if vendor == INTEL else "SVM") in found.mend
    assert "off and on" in found.then


def test_other_words_about_the_firmware_prove_nothing(host: FakeHost) -> None:
    host.cpu(INTEL, "vmx")
    host.write("/dev/kmsg", "6,0,1,-;BIOS-e820: reserved\n6,1,2,-;x86/cpu: SGX disabled by BIOS.\n")
    assert problem(host).cause == "module"


def msr_file(host: FakeHost, index: int, value: int) -> None:
    host.write("/dev/cpu/0/msr")
    with open(host.root / "dev/cpu/0/msr", "r+b") as file:
        file.seek(index)
        file.write(value.to_bytes(8, "little"))


@pytest.mark.parametrize(
    ("vendor", "flag", "index", "value", "cause"),
    [
        (INTEL, "vmx", 0x3A, 0b001, "firmware"),  # locked, VMX not allowed
        (INTEL, "vmx", 0x3A, 0b101, "module"),
        (INTEL, "vmx", 0x3A, 0b000, "module"),  # not locked: the module may allow it
        (AMD, "svm", 0xC0010114, 1 << 4, "firmware"),
        (AMD, "svm", 0xC0010114, 1 << 3, "module"),
    ],
)
def test_the_processor_s_register_tells(
    host: FakeHost, vendor: str, flag: str, index: int, value: int, cause: str
) -> None:
    host.cpu(vendor, flag)
    msr_file(host, index, value)
    assert problem(host).cause == cause


def test_a_bare_machine_without_the_flag(host: FakeHost) -> None:
    host.cpu(AMD, "sse2")
    found = problem(host)
    assert found.cause == "firmware"
    assert "or there is none" in found.line
    assert "AMD-V (SVM Mode)" in found.mend


def test_the_log_is_read_to_its_end_and_may_be_forbidden(host: FakeHost) -> None:
    assert kernel_log(host.view()) == ""
    host.write("/dev/kmsg", "6,1,2,-;x\n" * 5000)
    assert kernel_log(host.view()).count("\n") == 5000


# --- Not there: below another hypervisor -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text", "hypervisor", "mend"),
    [
        ("/sys/class/dmi/id/sys_vendor", "QEMU\n", "KVM", "sudo modprobe kvm_intel nested=1"),
        ("/sys/class/dmi/id/sys_vendor", "VMware, Inc.\n", "VMware", 'vhv.enable = "TRUE"'),
        ("/sys/class/dmi/id/product_name", "VirtualBox\n", "VirtualBox", "--nested-hw-virt on"),
        ("/sys/class/dmi/id/sys_vendor", "Microsoft Corporation\n", "Hyper-V", "-ExposeVirtualizationExtensions $true"),
        ("/sys/class/dmi/id/sys_vendor", "Google\n", "Google Compute Engine", "gcloud"),
        ("/sys/class/dmi/id/sys_vendor", "Amazon EC2\n", "Amazon EC2", ".metal"),
        ("/sys/class/dmi/id/sys_vendor", "Parallels\n", "Parallels", "prlctl"),
        ("/sys/hypervisor/type", "xen\n", "Xen", "nestedhvm=1"),
        ("/dev/kmsg", "6,1,2,-;Hypervisor detected: KVM\n", "KVM", "nested=1"),
        ("/etc/hostname", "box\n", "the hypervisor below it", "switch nested virtualization on"),
    ],
)  # fmt: skip
def test_nested_virtualization_is_off(host: FakeHost, file: str, text: str, hypervisor: str, mend: str) -> None:
    host.cpu(INTEL, "hypervisor")
    host.write(file, text)
    found = problem(host)
    assert found.cause == "nested"
    assert "this is a virtual machine" in found.line and hypervisor in found.line
    assert mend in found.mend


def test_nested_on_amd_names_amd_s_module(host: FakeHost) -> None:
    host.cpu(AMD, "hypervisor")
    host.write("/sys/class/dmi/id/sys_vendor", "QEMU")
    assert "kvm_amd nested=1" in problem(host).mend


@pytest.mark.parametrize("release", ["5.15.153.1-microsoft-standard-WSL2", "6.6.36.3-microsoft-standard-WSL2+"])
def test_wsl2(host: FakeHost, release: str) -> None:
    host.cpu(INTEL, "hypervisor")
    host.release = release
    found = problem(host)
    assert found.cause == "wsl"
    assert "nestedVirtualization=true" in found.mend and ".wslconfig" in found.mend
    assert found.then == "run: wsl --shutdown"


def test_wsl2_that_has_it_on_needs_its_module(host: FakeHost) -> None:
    host.cpu(INTEL, "vmx hypervisor")
    host.release = "5.15.153.1-microsoft-standard-WSL2"
    assert problem(host).mend == "sudo modprobe kvm_intel"


def test_wsl1(host: FakeHost) -> None:
    host.cpu(INTEL, "vmx")
    host.release = "4.4.0-19041-Microsoft"
    host.open_error = errno.ENOENT
    found = problem(host)
    assert found.cause == "wsl"
    assert "--set-version" in found.mend


# --- Looking ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_empty(host: FakeHost) -> None:
    view = host.view()
    assert view.read("/proc/cpuinfo") == ""
    assert view.cpu_flags() == frozenset()
    assert view.names("/sys/module") == []
    assert not view.exists("/sys")


def test_the_view_of_this_process(tmp_path: Path) -> None:
    view = HostView()
    assert view.uid == os.geteuid()
    assert view.user()
    assert view.path("/dev/kvm") == "/dev/kvm"
    assert HostView(tmp_path).path("/dev/kvm") == str(tmp_path / "dev/kvm")


def test_a_problem_in_one_line() -> None:
    assert str(Problem("module", "it is gone", "bring it")) == "it is gone; to mend it: bring it"
    assert str(Problem("module", "it is gone", "bring it", "rest")) == "it is gone; to mend it: bring it; then rest"
