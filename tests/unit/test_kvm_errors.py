"""What goes wrong with KVM, said in one line with the exit status of its kind; all of it without /dev/kvm."""

from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm._native import _kvm
from pyvmm.errors import STATUS_NO_KVM, STATUS_VMM_ERROR, KvmError, KvmUnavailableError
from pyvmm.kvm import Kvm, causes, descriptor, native, system
from pyvmm.kvm.descriptor import Attributes, Descriptor
from pyvmm.kvm.host import HostView
from pyvmm.kvm.hostcheck import explain_open
from pyvmm.kvm.vm import VmFd

PACKAGE = Path(system.__file__).parent


class FakeLib:
    """The compiled module with ioctls that answer as the test says: {name: result}; others succeed with 0."""

    def __init__(self, **results):
        self.results = results
        self.calls = []
        self.names = {getattr(_kvm.lib, name): name for name in dir(_kvm.lib) if name.startswith("KVM_")}

    def __getattr__(self, name):
        return getattr(_kvm.lib, name)

    def pyvmm_ioctl(self, fd, request, argument):
        name = self.names[request]
        self.calls.append(name)
        result = self.results.get(name, 0)
        return result(argument) if callable(result) else result

    pyvmm_ioctl_ptr = pyvmm_ioctl


@pytest.fixture
def fake(monkeypatch):
    def install(**results):
        lib = FakeLib(**results)
        monkeypatch.setattr(descriptor, "lib", lib)
        return lib

    return install


@pytest.fixture
def device(tmp_path):
    """A file that can be opened as /dev/kvm is."""
    path = tmp_path / "kvm"
    path.touch()
    return str(path)


def open_fds():
    return len(os.listdir("/proc/self/fd"))


def unavailable(path="/dev/kvm"):
    before = open_fds()
    with pytest.raises(KvmUnavailableError) as caught:
        Kvm(path)
    assert open_fds() == before
    assert caught.value.exit_status == STATUS_NO_KVM
    assert "\n" not in str(caught.value)
    return caught.value


# --- /dev/kvm ----------------------------------------------------------------------------------------------------


def test_no_device(tmp_path):
    error = unavailable(f"{tmp_path}/kvm")
    assert error.errno == errno.ENOENT
    assert str(error).startswith(f"{tmp_path}/kvm cannot be opened: No such file or directory")


def refuse(monkeypatch, number):
    def fail(path, flags):
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "open", fail)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENODEV, errno.ENXIO])
def test_the_device_s_own_path_gets_what_doctor_would_say(monkeypatch, number):
    refuse(monkeypatch, number)
    error = unavailable()
    assert error.errno == number
    assert str(error) == str(explain_open(HostView(), number))
    assert "; to mend it: " in str(error)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EBUSY, "cannot be opened"),
        (errno.EMFILE, "as many files open as it may"),
        (errno.ENFILE, "fs.file-max"),
        (errno.EISDIR, "cannot be opened"),
    ],
)
def test_other_reasons(monkeypatch, number, says):
    refuse(monkeypatch, number)
    error = unavailable()
    assert error.errno == number
    assert says in str(error)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero"])
def test_not_kvm(path):
    assert str(unavailable(path)).startswith(f"{path} is not KVM: KVM_GET_API_VERSION failed")


def test_a_directory(tmp_path):
    assert f"{tmp_path} cannot be opened: Is a directory" in str(unavailable(str(tmp_path)))


@pytest.mark.parametrize("version", [0, 11, 13])
def test_another_api_version(fake, device, version):
    fake(KVM_GET_API_VERSION=version)
    assert str(unavailable(device)) == f"{device} speaks version {version} of the KVM API, not 12"


def test_no_compiled_module(monkeypatch):
    monkeypatch.setattr(native, "PROBLEM", "the extension module is not built")
    assert str(unavailable()) == "the extension module is not built"


def test_a_checkout_that_was_never_built(tmp_path):
    """Everything in pyvmm.kvm imports; Kvm() says why it cannot be used."""
    program = """
import importlib, pkgutil, sys
sys.modules["pyvmm._native._kvm"] = None
import pyvmm.kvm
names = [module.name for module in pkgutil.iter_modules(pyvmm.kvm.__path__, "pyvmm.kvm.")]
for name in names:
    importlib.import_module(name)
from pyvmm.errors import KvmUnavailableError
try:
    pyvmm.kvm.Kvm()
except KvmUnavailableError as error:
    print(len(names) > 10, error.exit_status, error)
"""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parents[1])}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.stderr == ""
    assert result.stdout.startswith("True 126 the extension module pyvmm._native._kvm is not built here (pip install")


def test_another_system(monkeypatch, tmp_path):
    program = """
import sys
sys.modules["pyvmm._native._kvm"] = None
sys.platform = "darwin"
from pyvmm.kvm import native
print(native.PROBLEM)
"""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parents[1])}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.stdout == "KVM is part of Linux, and this is darwin\n"


# --- ioctls ------------------------------------------------------------------------------------------------------


@pytest.fixture
def kvm(fake, device):
    """A Kvm on an ordinary file, with the FakeLib that answers for it."""
    lib = fake(KVM_GET_API_VERSION=12, KVM_GET_VCPU_MMAP_SIZE=4096)
    with Kvm(device) as made:
        yield made, lib


def test_another_hypervisor_holds_the_processor(kvm):
    made, lib = kvm
    lib.results["KVM_CREATE_VM"] = -errno.EBUSY
    with pytest.raises(KvmUnavailableError, match="another hypervisor holds the processor") as caught:
        made.create_vm()
    assert (caught.value.errno, caught.value.exit_status) == (errno.EBUSY, STATUS_NO_KVM)


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.ENOMEM, "too little memory left"), (errno.EMFILE, "ulimit -n"), (errno.ENFILE, "fs.file-max")],
)
def test_no_more_memory_or_descriptors(kvm, number, says):
    made, lib = kvm
    lib.results["KVM_CREATE_VM"] = -number
    with pytest.raises(KvmError, match=says) as caught:
        made.create_vm()
    assert (caught.value.ioctl, caught.value.errno) == ("KVM_CREATE_VM", number)
    assert caught.value.exit_status == STATUS_VMM_ERROR
    assert str(caught.value).startswith(f"KVM_CREATE_VM failed: {os.strerror(number)} (errno {number}); ")


def test_a_vcpu_that_cannot_be_mapped_is_closed(kvm):
    made, lib = kvm
    lib.results["KVM_CREATE_VM"] = lambda _: os.open("/dev/null", os.O_RDONLY)
    with made.create_vm() as vm:
        before = open_fds()
        lib.results["KVM_CREATE_VCPU"] = lambda _: os.open("/dev/null", os.O_RDONLY)
        with pytest.raises(KvmError, match="mmap of a vCPU failed"):
            vm.create_vcpu(0)
        assert open_fds() == before


def test_no_real_time_signal_is_left(kvm, monkeypatch):
    from pyvmm.kvm import vcpu

    made, lib = kvm
    monkeypatch.setattr(vcpu, "_kick_signal", 0)
    monkeypatch.setattr(vcpu, "lib", lib)
    lib.pyvmm_kick_install = lambda: -errno.EBUSY
    lib.results["KVM_CREATE_VM"] = lambda _: os.open("/dev/null", os.O_RDONLY)
    with made.create_vm() as vm:
        before = open_fds()
        lib.results["KVM_CREATE_VCPU"] = lambda _: os.open("/dev/null", os.O_RDONLY)
        with pytest.raises(KvmError, match="sigaction failed"):
            vm.create_vcpu(0)
        assert open_fds() == before


def test_a_failed_slot_gives_its_memory_back(kvm):
    _, lib = kvm
    lib.results["KVM_SET_USER_MEMORY_REGION"] = -errno.EEXIST
    view = memoryview(bytearray(4096))
    with VmFd(os.open("/dev/null", os.O_RDONLY), 0) as vm:
        with pytest.raises(KvmError, match="overlaps another slot") as caught:
            vm.set_user_memory_region(0, 0, view)
        assert caught.value.__traceback__ is not None  # which still knows that call's variables
        view.release()  # BufferError while somebody holds it
        with pytest.raises(ValueError, match="slot 0 has no memory"):
            vm.dirty_log(0)


def test_a_slot_keeps_its_memory_until_it_is_removed_or_the_vm_closed(kvm):
    first, second = bytearray(4096), bytearray(4096)
    with VmFd(os.open("/dev/null", os.O_RDONLY), 0) as vm:
        vm.set_user_memory_region(0, 0, memoryview(first))
        with pytest.raises(BufferError):
            first.append(0)
        vm.set_user_memory_region(0, 0, memoryview(second))
        first.append(0)
        vm.set_user_memory_region(1, 4096, memoryview(first)[:4096])
        vm.set_user_memory_region(0, 0, None)
        second.append(0)
        with pytest.raises(BufferError):
            first.append(0)
    first.append(0)


FORGOTTEN = """
import gc, os
from types import SimpleNamespace
from pyvmm.kvm.vm import VmFd

VmFd.ioctl = lambda *_: 0
memory = bytearray(4096)
view = memoryview(memory)
gc.collect()  # what is older is taken apart first
vm = VmFd(os.open("/dev/null", os.O_RDONLY), 0)
vm.set_user_memory_region(0, 0, view)
owner = SimpleNamespace(view=view, vm=vm)
owner.itself = owner
del view, vm, owner
gc.collect()
memory.append(0)
"""


def test_a_vm_that_nobody_closed_and_its_memory_can_be_garbage_together():
    """Else the collector takes a view apart of which the VM has a buffer; CPython does not survive that."""
    done = subprocess.run([sys.executable, "-c", FORGOTTEN], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_memory_that_cannot_be_written_needs_a_read_only_slot(kvm):
    from pyvmm.kvm.constants import KVM_MEM_READONLY

    with VmFd(os.open("/dev/null", os.O_RDONLY), 0) as vm:
        with pytest.raises(BufferError):
            vm.set_user_memory_region(0, 0, memoryview(bytes(4096)))
        vm.set_user_memory_region(0, 0, memoryview(bytes(4096)), KVM_MEM_READONLY)


def test_close_is_in_order_and_happens_once(kvm):
    order = []
    memory = bytearray(4096)

    class Child(Descriptor):
        __slots__ = ("name",)

        def __init__(self, name):
            super().__init__(os.open("/dev/null", os.O_RDONLY))
            self.name = name

        def close(self):
            order.append((self.name, vm.fileno() >= 0))
            super().close()

    vm = VmFd(os.open("/dev/null", os.O_RDONLY), 0)
    vm.set_user_memory_region(0, 0, memoryview(memory))
    for name in ("first", "second"):
        vm.adopt(Child(name))
    vm.close()
    vm.close()
    memory.append(0)
    assert order == [("second", True), ("first", True)]


def test_asking_for_a_device_makes_none(fake):
    """KVM leaves the descriptor's place at 0, which is somebody else's."""
    fake()
    with VmFd(os.open("/dev/null", os.O_RDONLY), 0) as vm:
        assert vm.has_device(4)
    os.fstat(0)


@pytest.mark.parametrize(("number", "there"), [(errno.ENODEV, False), (errno.EPERM, None)])
def test_a_device_that_is_not_there(fake, number, there):
    fake(KVM_CREATE_DEVICE=-number)
    with VmFd(os.open("/dev/null", os.O_RDONLY), 0) as vm:
        if there is None:
            with pytest.raises(KvmError):
                vm.has_device(4)
        else:
            assert vm.has_device(4) == there


def test_one_child_that_cannot_be_closed_does_not_keep_the_vm_open(kvm):
    class Bad(Descriptor):
        __slots__ = ()

        def close(self):
            self._fd = -1
            raise BufferError("borrowed")

    memory = bytearray(4096)
    before = open_fds()
    vm = VmFd(os.open("/dev/null", os.O_RDONLY), 0)
    vm.set_user_memory_region(0, 0, memoryview(memory))
    vm.adopt(Descriptor(os.open("/dev/null", os.O_RDONLY)))
    vm.adopt(Bad(-1))
    with pytest.raises(BufferError):
        vm.close()
    assert vm.fileno() == -1
    memory.append(0)
    vm.close()  # goes on where it was left
    assert open_fds() == before


def test_a_forgotten_descriptor_is_closed_when_it_goes():
    before = open_fds()
    Descriptor(os.open("/dev/null", os.O_RDONLY))
    assert open_fds() == before


def test_a_list_grows_until_it_fits(kvm):
    made, lib = kvm
    lengths = []

    def answer(wanted, tells):
        def ioctl(state):
            lengths.append(state.nmsrs)
            if state.nmsrs < wanted:
                if tells:
                    state.nmsrs = wanted
                return -errno.E2BIG
            state.nmsrs = wanted
            state.indices[wanted - 1] = 77
            return 0

        return ioctl

    lib.results["KVM_GET_MSR_INDEX_LIST"] = answer(1000, tells=True)
    assert made.msr_index_list()[-1] == 77
    assert lengths == [256, 1000]
    lengths.clear()
    lib.results["KVM_GET_MSR_INDEX_LIST"] = answer(900, tells=False)
    assert len(made.msr_index_list()) == 900
    assert lengths == [256, 512, 1024]


@pytest.mark.parametrize("claim", [0, 1, 0xFFFFFFFF])
def test_a_list_does_not_grow_for_ever(kvm, claim):
    made, lib = kvm

    def ioctl(state):
        state.nmsrs = claim
        return -errno.E2BIG

    lib.results["KVM_GET_MSR_INDEX_LIST"] = ioctl
    with pytest.raises(KvmError) as caught:
        made.msr_index_list()
    assert caught.value.errno == errno.E2BIG


def test_attributes(kvm):
    _, lib = kvm

    def get(request):
        address = _kvm.ffi.cast("uint64_t *", request.addr)
        address[0] = request.group << 8 | request.attr
        return 0

    lib.results |= {"KVM_GET_DEVICE_ATTR": get, "KVM_HAS_DEVICE_ATTR": lambda request: -errno.ENXIO * request.attr}
    with Attributes(os.open("/dev/null", os.O_RDONLY)) as device:
        assert device.get_attribute(2, 3) == 0x203
        assert device.has_attribute(0, 0)
        assert not device.has_attribute(0, 1)
        device.set_attribute(0, 0, 5)
    assert "KVM_SET_DEVICE_ATTR" in lib.calls


def test_causes_are_of_requests_that_exist():
    assert {name for name, _ in causes.OF_IOCTL} <= set(dir(_kvm.lib))
    assert causes.cause("KVM_CREATE_VCPU", errno.EEXIST) == "this VM already has a vCPU of that index"
    assert causes.cause("KVM_CREATE_VCPU", errno.ENOMEM) == causes.OF_ERRNO[errno.ENOMEM]
    assert causes.cause("KVM_CREATE_VCPU", errno.EXDEV) == ""


def test_every_ioctl_that_the_layer_names_exists():
    """They are looked up by name when they are used: a misspelt one would be found by its first user."""
    callers = ("ioctl", "_get", "_get_list", "_attribute", "_cpuid", "_msr_list")
    named = set()
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in callers:
                named |= {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
    named = {name for name in named if isinstance(name, str) and name.startswith("KVM_")}
    requests = {name for name in dir(_kvm.lib) if name.startswith("KVM_")}
    assert named <= requests
    # What is not called through those: by its own C function, or by a name of its own.
    assert requests - named == {"KVM_RUN", "KVM_HAS_DEVICE_ATTR"}
