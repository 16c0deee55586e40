"""What the fixtures of the pytest plugin do: VMs for a test, for a session, cloned, on a network; all are closed.

Imports vm and its neighbours. One `Worker` a process of pytest, made when the first fixture is used.
"""

from __future__ import annotations

import os
import re
import threading
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import pytest

from pyvmm.closing import close_all
from pyvmm.config import VmConfig
from pyvmm.errors import STATUS_TIME_LIMIT, ImageError, KvmUnavailableError, PyvmmError, UsageError
from pyvmm.runloop import Outcome
from pyvmm.testing.failures import section
from pyvmm.testing.network import VmNet
from pyvmm.testing.settings import Defaults, is_image, linux, mark_settings
from pyvmm.testing.snapshots import SharedSnapshots
from pyvmm.vm import VM

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any, NoReturn

USED: pytest.StashKey[list[tuple[str, VM]]] = pytest.StashKey()
"""The VMs of a test, each with what they are called in its report."""
SHARED_FOLDER = "pyvmm-snapshots"
SESSION = "vm_session"
OWN_VM = ("vm", "vm_factory", "vm_snapshot", "vm_net")
"""The fixtures whose VMs are one test's own, made as its mark says."""
VM_ARGUMENTS = ("console", "observers", "paused", "say", "trace")
"""Arguments of VM that are no settings of VmConfig."""


class Worker:
    """What the fixtures of this process share. `base` is this process's base temporary folder."""

    def __init__(self, config: pytest.Config, prefix: str, base: pathlib.Path) -> None:
        self.prefix = prefix
        self.session: VM | None = None
        self._config = config
        self._factories: list[VmFactory] = []
        self._no_kvm: str | None = None
        self._told: WeakKeyDictionary[VM, int] = WeakKeyDictionary()  # how many findings of each
        self._base = os.fspath(base)
        # xdist gives each worker a folder below that of the run.
        shared = base.parent if hasattr(config, "workerinput") else base
        self._shared = os.path.join(shared, SHARED_FOLDER)
        self._defaults: Defaults | None = None
        self._snapshots: SharedSnapshots | None = None

    # --- The fixtures --------------------------------------------------------------------------------------------

    def factory(self, request: pytest.FixtureRequest) -> VmFactory:
        """`vm_factory`."""
        node = request.node
        mark: dict[str, Any] = {}
        with told():
            if isinstance(node, pytest.Item):
                mark = mark_settings(node, f"{self.prefix}vm")
            defaults = self.defaults
        self.need_kvm()
        factory = VmFactory(self, defaults, mark, node)
        self._factories.append(factory)

        def close() -> None:
            if factory in self._factories:
                self._factories.remove(factory)
            factory.close()

        request.addfinalizer(close)
        return factory

    def booted(self, request: pytest.FixtureRequest) -> VM:
        """`vm`."""
        factory = self.factory(request)
        with told():
            return factory.boot("vm")

    def booted_for_session(self, request: pytest.FixtureRequest) -> VM:
        """`vm_session`."""
        factory = self.factory(request)
        with told():
            self.session = factory.boot(SESSION, limited=False)
        return self.session

    def clone(self, request: pytest.FixtureRequest) -> VM:
        """`vm_snapshot`."""
        factory = self.factory(request)
        with told():
            return factory.clone()

    def net(self, request: pytest.FixtureRequest) -> VmNet:
        """`vm_net`."""
        factory = self.factory(request)
        net = VmNet(factory, self._base)
        factory.closers.append(net.close)
        return net

    # --- What they need ------------------------------------------------------------------------------------------

    @property
    def defaults(self) -> Defaults:
        """What options and ini file say."""
        if self._defaults is None:
            self._defaults = Defaults(self._config)
        return self._defaults

    @property
    def snapshots(self) -> SharedSnapshots:
        """Those that the workers share."""
        if self._snapshots is None:
            self._snapshots = SharedSnapshots(self._shared)
        return self._snapshots

    def need_kvm(self) -> None:
        """Skip the test where KVM cannot be used, or fail it where PYVMM_REQUIRE lists kvm."""
        if self._no_kvm is None:
            self._no_kvm = _no_kvm()
        if self._no_kvm:
            lacks("kvm", self._no_kvm)

    # --- Round a test --------------------------------------------------------------------------------------------

    @contextmanager
    def session_limited(self, item: pytest.Item) -> Iterator[None]:
        """While a test has the session's VM: it is ended when the test has taken too long."""
        vm = self.session
        if vm is None:
            yield
            return
        mark = f"{self.prefix}vm"
        if item.get_closest_marker(mark) is not None and not self._uses(item, *OWN_VM):
            pytest.fail(f"@pytest.mark.{mark} of {item.nodeid}: the VM of the session is everybody's", pytrace=False)
        limit = self.defaults.timeout
        detail = f"the time limit of {limit:g} s for one test was reached"
        timer = threading.Timer(limit, vm.stop, (Outcome("time-limit", STATUS_TIME_LIMIT, detail),))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def sections(self, item: pytest.Item) -> list[tuple[str, str]]:
        """What there is to say of the VMs of a test: title and text of each."""
        used = self._vms(item)
        names = [name for name, _ in used]
        return [
            (f"pyvmm: {name}" + (f" {at + 1}" if names.count(name) > 1 else ""), section(vm))
            for at, (name, vm) in enumerate(used)
        ]

    def findings(self, item: pytest.Item) -> str:
        """What a lint found of the drivers in a test's guests and has not been told before, or ""."""
        lines = []
        for title, vm in self._vms(item):
            found = vm.findings
            lines += [f"{title}: {finding}" for finding in found[self._told.get(vm, 0) :]]
            self._told[vm] = len(found)
        return "\n".join(["the guest's virtio drivers break the specification:", *lines]) if lines else ""

    def _vms(self, item: pytest.Item) -> list[tuple[str, VM]]:
        """The VMs of a test, each with what it is called."""
        used = [*item.stash.setdefault(USED, [])]
        if self.session is not None and self._uses(item, SESSION):
            used.append((SESSION, self.session))
        return used

    def _uses(self, item: pytest.Item, *fixtures: str) -> bool:
        """Whether the test asks for one of `fixtures`."""
        names = getattr(item, "fixturenames", ())
        return any(self.prefix + name in names for name in fixtures)

    def close(self) -> None:
        """Close what is still open, as after an interrupt."""
        factories, self._factories = self._factories, []
        failure = close_all([factory.close for factory in factories])
        if failure is not None:
            raise failure


class VmFactory:
    """Makes the VMs of one test: `vm_factory(kernel, mem="64M")` starts one and returns it.

    closers   what is called when the test is over, the last first: it closes the VMs

    None runs for longer than the time limit of the fixtures, or its own.
    """

    def __init__(self, worker: Worker, defaults: Defaults, mark: Mapping[str, Any], node: pytest.Item | Any) -> None:
        self._worker = worker
        self._defaults = defaults
        self._mark = mark
        self._node = node
        self.closers: list[Callable[[], None]] = []
        self._traces: list[str] = []

    def __call__(self, kernel: str | os.PathLike[str] | None = None, **settings: Any) -> VM:
        """A running VM. `settings` are those of `VmConfig`, in place of the mark's, and `console`, `paused`, ... of VM.

        Without `kernel`, or with an image's name, and with `agent=True` it is a Linux with the agent, made as options
        and ini file say; any other kernel gets what is given here and by the mark, and nothing else. Raises what
        starting a VM raises.
        """
        own = {name: settings.pop(name) for name in VM_ARGUMENTS if name in settings}
        settings = {**self._mark, **settings}
        if kernel is not None:
            settings["kernel"] = kernel
        if "kernel" not in settings or is_image(settings["kernel"]) or settings.get("agent"):
            settings = self._linux(settings)
        return self.start(VM(config=self._config(settings), **own), os.path.basename(settings["kernel"]))

    def boot(self, title: str, *, limited: bool = True) -> VM:
        """A Linux whose agent answers. `limited`: whether its time is."""
        config = self._config(self._linux(self._mark))
        limit = config.timeout
        if not limited:
            config.timeout = None
        vm = self.start(VM(config=config), title)
        if config.agent:
            vm.guest.wait_ready(limit)
        return vm

    def clone(self, others: Mapping[str, Any] | None = None, **settings: Any) -> VM:
        """A clone of a Linux whose agent answered, made as the mark and `settings` say; the first one takes a boot.

        `others` are settings that the clone has in place of those of the snapshot, as `VM.restore` takes them. Raises
        PyvmmError.
        """
        config = self._config(self._linux({**self._mark, **settings}))
        if not config.agent:
            raise UsageError("a snapshot is made when the agent answers: agent=False cannot be")
        path = self._worker.snapshots.get(config, getattr(self._node, "nodeid", "the session"))
        own = {"timeout": config.timeout, **({"lint": True} if config.lint else {}), **(others or {})}
        return self.start(VM.restore(path, **own), "clone")

    def start(self, vm: VM, title: str) -> VM:
        """Start `vm`, which is closed with the others."""
        if self._defaults.trace and vm.trace is None:
            vm.trace = self._trace(title)
        self.closers.append(vm.close)
        self._node.stash.setdefault(USED, []).append((title, vm))
        vm.start()
        return vm

    def close(self) -> None:
        """Close all VMs, the last first. Raises the first error of those that there were, when all are closed."""
        self._node.stash.setdefault(USED, []).clear()  # what reports there are have been written
        failure = close_all(self.closers)
        for path in () if self._failed() else self._traces:
            if os.path.exists(path):
                os.unlink(path)
        if failure is not None:
            raise failure

    def _failed(self) -> bool:
        """Whether the test, or any of the session that has the VM, has failed."""
        from pyvmm.testing.plugin import FAILED

        return bool(self._node.stash.get(FAILED, False) or getattr(self._node, "testsfailed", 0))

    def _trace(self, title: str) -> str:
        """A file for a VM's trace, named after the test: as it is recorded, which costs nothing at the end."""
        os.makedirs(self._defaults.trace, exist_ok=True)
        test = re.sub(r"[^\w.-]+", "_", getattr(self._node, "nodeid", "") or SESSION)[-150:]
        path = os.path.join(self._defaults.trace, f"{test}-{title}-{len(self._traces) + 1}.trace")
        self._traces.append(path)
        return path

    def _linux(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """`settings`, and what they leave open by default. Skips the test where an image is not built."""
        append = " ".join(filter(None, (part.get("append", "") for part in (self._defaults.settings, settings))))
        chosen = {**self._defaults.settings, **settings, "append": append}
        if "kernel" in settings and "initrd" not in settings:
            chosen.pop("initrd", None)  # the default one is for the default kernel
        try:
            return linux(chosen)
        except ImageError as error:
            lacks("tiny-image", str(error))

    def _config(self, settings: Mapping[str, Any]) -> VmConfig:
        config = VmConfig(**{**({"lint": True} if self._defaults.lint else {}), **settings})
        if config.timeout is None:
            config.timeout = self._defaults.timeout
        return config


@contextmanager
def told() -> Iterator[None]:
    """Within, an error of pyvmm's is one line of the report and no traceback: nothing of the test's own has run."""
    try:
        yield
    except PyvmmError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


def lacks(name: str, reason: str) -> NoReturn:
    """Skip the test for want of what `name` stands for, or fail it where PYVMM_REQUIRE lists that."""
    if name in os.environ.get("PYVMM_REQUIRE", "").replace(",", " ").split():
        pytest.fail(f"PYVMM_REQUIRE lists {name}, but {reason}", pytrace=False)
    pytest.skip(f"needs {name}: {reason}")


def _no_kvm() -> str:
    """Why KVM cannot be used, or ""."""
    if os.environ.get("PYVMM_NO_KVM") == "1":
        return "PYVMM_NO_KVM=1"
    from pyvmm.kvm import Kvm

    try:
        Kvm().close()
    except KvmUnavailableError as error:
        return str(error)
    return ""
