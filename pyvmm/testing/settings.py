"""What the guests of the pytest fixtures are made of: options, the ini file, the mark `vm`, and what they stand for.

Imports config and images. pytest's own part, which is there before any of this is loaded, is `plugin`.
"""

from __future__ import annotations

import os

from pyvmm.config import VmConfig, parse_duration
from pyvmm.errors import UsageError
from pyvmm.images import image, image_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    import pytest

TIMEOUT = 120.0
"""Seconds that a guest may run where nobody says otherwise: ten boots where ring 0 is emulated, a hundred elsewhere."""
TINY = "tiny"
DEFAULTS = ("kernel", "initrd", "append", "mem", "cpus")
"""Settings that have an option and a key of the ini file."""
PATHS = ("kernel", "initrd")


class Defaults:
    """What options and ini file say. Raises UsageError, which names the option, for what cannot be meant."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._folder = os.fspath(config.invocation_params.dir)
        self.timeout = TIMEOUT
        given, where = self._find("timeout")
        if given:
            try:
                self.timeout = parse_duration(given)
            except UsageError as error:
                raise UsageError(f"{where}: {error}") from None
        given_lint = config.getoption("vm_lint")
        self.lint = bool(config.getini("vm_lint") if given_lint is None else given_lint)
        given, where = self._find("trace")
        self.trace = self._path(given, where) if given else ""
        """The folder for traces of tests that fail, or ""."""
        self.settings: dict[str, Any] = {}
        for name in DEFAULTS:
            given, where = self._find(name)
            if given:
                self.settings[name] = self._read(name, given, where)

    def _find(self, name: str) -> tuple[str, str]:
        """The value, "" where there is none, and where it comes from."""
        option = self._config.getoption(f"vm_{name}")
        if option is not None:
            return str(option), f"--vm-{name}"
        return str(self._config.getini(f"vm_{name}")), f"vm_{name} in {self._config.inipath}"

    def _read(self, name: str, given: str, where: str) -> object:
        if name == "cpus":
            if not (given.isascii() and given.isdigit()):
                raise UsageError(f"{where}: {given!r} is no number of CPUs")
            return int(given)
        if name in PATHS and not is_image(given):
            return self._path(given, where)
        return given

    def _path(self, given: str, where: str) -> str:
        inipath = self._config.inipath
        folder = os.path.dirname(inipath) if inipath is not None and where.startswith("vm_") else self._folder
        return os.path.join(folder, given)


def is_image(kernel: object) -> bool:
    """Whether `kernel` is the name of one of pyvmm's Linux images and not a path."""
    return isinstance(kernel, str) and os.sep not in kernel and kernel in image_names()


def linux(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of VmConfig for a Linux with the agent, of `settings`, in which an image's name may be a kernel.

    Without `initrd` it gets the image's, which has the agent in it. Raises ImageError where an image is not built.
    """
    made = {"kernel": TINY, "agent": True, **settings}
    kernel, words = made["kernel"], ["quiet"]
    named = is_image(kernel)
    if named:
        made["kernel"] = image(kernel).kernel
    if "initrd" not in made and (named or made["agent"]):
        made["initrd"] = image(kernel if named else TINY).initrd
        if made["agent"]:
            words.append("pyvmm.agent")
    made["append"] = " ".join(filter(None, [*words, made.get("append", "")]))
    return made


def mark_settings(item: pytest.Item, name: str) -> dict[str, Any]:
    """What the marks `name` of a test say, the nearest one first. Raises UsageError, which names the test."""
    import inspect

    found: dict[str, Any] = {}
    known = list(inspect.signature(VmConfig).parameters)
    for mark in item.iter_markers(name):
        where = f"@pytest.mark.{name} of {item.nodeid}"
        if mark.args:
            raise UsageError(f"{where}: {mark.args[0]!r} needs a name (as in mem={mark.args[0]!r})")
        for key in mark.kwargs:
            if key not in known:
                raise UsageError(f"{where}: there is no setting {key!r}{_guess(key, known)}")
        try:
            VmConfig(**{"kernel": TINY, **mark.kwargs})
        except (UsageError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"{where}: {error}") from None
        found = {**mark.kwargs, **found}
    return found


def _guess(name: str, known: list[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, known, 1)
    return f" (did you mean {close[0]}?)" if close else f" (there are {', '.join(known)})"
