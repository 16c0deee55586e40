"""The command line of a Linux kernel, composed: what pyvmm always says, what the host needs, the user's words last.

Imports layout alone. Linux's Documentation/admin-guide/kernel-parameters.rst says what each word means. Later words win
over earlier ones, so that everything said here can be said otherwise with --append; `--dry-run` shows the result.

A word stands here only if leaving it out would leave somebody waiting. Words that merely make some kernels a little
quicker (`8250.nr_uarts=1`, `i8042.noaux`, `no_timer_check`) do not: in a VM what they skip takes microseconds. Neither
does `tsc=reliable`, which is not pyvmm's to promise, nor `quiet`, which hides what a kernel that fails has said.
"""

from __future__ import annotations

from pyvmm.layout import ACPI_PM_CONTROL, ACPI_PM_PORT, ACPI_S5_SLEEP_TYPE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyvmm.boot import BootConfig, Surroundings

CONSOLE = "console=ttyS0"
"""Output to the serial port, which is pyvmm's console. Left out when the user names a console: Linux writes to all
that are named, and takes the last for /dev/console."""

ENDINGS = ("reboot=k", "panic=-1")
"""How a guest leaves.

reboot=k  reset through the keyboard controller, which every pyvmm machine has. Linux's other ways may end in a triple
          fault, which could not be told from a crash.
panic=-1  a panic reboots at once. Linux's own default is to halt for ever, and nobody would learn of it.
"""

POWER_OFF = f"reboot.poweroff={ACPI_PM_PORT + ACPI_PM_CONTROL:#x},{1 << 13 | ACPI_S5_SLEEP_TYPE << 10:#x}"
"""The port that powers the machine off and the value for it, SLP_EN and SLP_TYP, for a kernel without ACPI. The tiny
image's kernel knows this word, others pass over it and halt."""


def for_kernel(config: BootConfig, surroundings: Surroundings, notes: list[str]) -> str:
    """What a Linux kernel is given; a line in `notes` tells the user of words that are there because of the host."""
    helps = surroundings.helps if config.host_quirks else ()
    if helps:
        notes.append(f"this host's KVM needs {' '.join(helps)} (--no-host-quirks leaves that out)")
    return compose(config.append, helps, surroundings.devices if without_acpi(config.append) else ())


def compose(append: str, helps: Iterable[str] = (), devices: Iterable[str] = ()) -> str:
    """The whole command line.

    `helps` are the words that the host's KVM needs, `devices` those that announce devices, `append` is the user's.
    """
    words = [] if names_console(append) else [CONSOLE]
    words += ENDINGS
    if without_acpi(append):
        words.append(POWER_OFF)
    words += [*helps, *devices]
    if append.strip():
        words.append(append)
    return " ".join(words)


def without_acpi(append: str) -> bool:
    """Whether the user switches ACPI off, so that the kernel does not find devices by the DSDT."""
    return "acpi=off" in kernels_own(append)


def console_device(append: str) -> str:
    """The device that is /dev/console, the last that `append` names (without its speed), or "" if it names none."""
    named = [word.removeprefix("console=") for word in kernels_own(append) if word.startswith("console=")]
    return named[-1].partition(",")[0] if named else ""


def names_console(append: str) -> bool:
    """Whether one of the kernel's own words in `append` is a console=."""
    return any(word.startswith("console=") for word in kernels_own(append))


def kernels_own(append: str) -> list[str]:
    """The words of `append` before the `--` that ends what is the kernel's; the others are init's."""
    words = append.split()
    return words[: words.index("--")] if "--" in words else words
