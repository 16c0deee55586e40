"""What the arguments of `pyvmm run` describe: the VM, and files that may be written.

May import config, options, the devices that options name, command and images.
"""

from __future__ import annotations

import os

from pyvmm.config import VmConfig
from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.cli.options import Arguments

DEFAULT_IMAGE = "tiny"
"""The Linux image of `pyvmm.images` that is booted when no KERNEL is named."""
STUCK_AT_BOOT = 30.0
"""Seconds without progress after which a run is ended that nobody is there to end, if it has not come to user space."""
SETTINGS = (
    "agent",
    "append",
    "cpu",
    "cpus",
    "fail-on",
    "fault-seed",
    "datapath",
    "exits",
    "flat-mode",
    "initrd",
    "kernel-entry",
    "kernel-format",
    "lint",
    "load-addr",
    "mem",
    "memory-backing",
    "name",
    "on-panic",
    "stuck",
    "symbols",
    "timeout",
    "transport",
    "vsock",
)
"""The options that are VmConfig's, by the same names."""


def make_config(arguments: Arguments) -> VmConfig:
    """The VM that the arguments describe; without a KERNEL the image DEFAULT_IMAGE.

    Raises UsageError, ImageError where that image is not there.
    """
    kernel, *others = arguments.positional or [""]
    if others:
        raise UsageError(f"one KERNEL expected, but there is also {others[0]!r}{_meant(arguments.values)}")
    values: dict[str, Any] = arguments.values
    file: dict[str, Any] = {}
    if "config" in values:
        from pyvmm.configfile import read_settings

        file = read_settings(values["config"])
        if not kernel and "kernel" in file:
            kernel = file["kernel"]
            arguments.positional.append(kernel)
    settings = file | {option.replace("-", "_"): value for option, value in values.items() if option in SETTINGS}
    if "append" in values:
        settings["append"] = " ".join([*filter(None, [file.get("append")]), *values["append"]])
    if not {"stuck", "stuck_at_boot"} & settings.keys() and not any(map(os.isatty, (0, 2))):
        settings["stuck_at_boot"] = STUCK_AT_BOOT
    if "no-host-quirks" in arguments.values:
        settings["host_quirks"] = False
    for option in ("disk", "port", "share", "fault"):
        settings[f"{option}s"] = [*file.get(f"{option}s", ()), *values.get(option, ())]
    if "net" in values or "publish" in values:
        from pyvmm.cli.devices import networks

        nets = values.get("net", [])
        if None not in nets:
            nets = [*file.get("net", ()), *nets]
        settings["net"] = networks(nets, values.get("publish", []))
    if "rng" in values:
        from pyvmm.hardware import Rng

        settings["rng"] = Rng() if values["rng"] is True else values["rng"]
    if "balloon" in values:
        from pyvmm.hardware import Balloon

        settings["balloon"] = Balloon() if values["balloon"] is True else values["balloon"]
    if arguments.command is not None:
        from pyvmm.cli.command import settle

        settle(settings, arguments)
    else:
        for option in ("env", "modules", "root", "rwdir", "user", "verbose"):
            if option in values:
                raise UsageError(f"--{option} goes with a command in the guest (-- CMD)")
    if not arguments.positional:
        kernel, initrd = _default_image()
        settings.setdefault("initrd", initrd)
    settings["kernel"] = kernel
    return VmConfig(**settings)


def _meant(values: dict[str, Any]) -> str:
    """What a word too many was perhaps meant for: a value behind an option that takes one only as `--x=VALUE`."""
    from pyvmm.cli.options import OPTIONAL
    from pyvmm.cli.runoptions import RUN

    bare = [f"--{row.name}={row.metavar}" for row in RUN if row.kind == OPTIONAL and values.get(row.name) is True]
    return f" (a value goes with its option as {bare[0]})" if bare else ""


def _default_image() -> tuple[str, str]:
    """The paths of kernel and initrd."""
    from pyvmm.errors import ImageError
    from pyvmm.images import image

    try:
        found = image(DEFAULT_IMAGE)
    except ImageError as error:
        raise ImageError(f"no KERNEL given, and {error}") from error
    return found.kernel, found.initrd


def judge_outputs(values: dict[str, Any], config: VmConfig) -> None:
    """See that no file to be written is read by the VM, nor the trace's written twice. Raises UsageError."""
    kind, _, path = values.get("console", "").partition(":")
    outputs = {"report": values.get("report"), "console": path if kind == "file" else None}
    trace = values.get("trace")
    for option, path in {**outputs, "trace": trace}.items():
        if path is None:
            continue
        for part in (config.kernel, config.initrd, config.symbols, *(disk.path for disk in config.disks)):
            if part and os.path.exists(path) and os.path.exists(part) and os.path.samefile(path, part):
                raise UsageError(f"--{option}: {path} is read by this VM and would be overwritten")
    for option, path in outputs.items():
        if path and trace is not None and os.path.realpath(path) == os.path.realpath(trace):
            raise UsageError(f"--trace: {trace} is written by --{option} too")
