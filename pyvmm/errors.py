"""Every exception that pyvmm raises, and the exit status each one has at the command line.

Imports nothing. An error's text is one line that names the thing, the place in it and what was expected; whoever
catches one at a boundary prints it as it stands. A guest's fault is never one of these: it is data (an
`pyvmm.vm.Exit`), and only what the host or the user got wrong is raised.
"""

from __future__ import annotations

import os

STATUS_USAGE = 2
STATUS_CRASH = 121
STATUS_PANIC = 122
STATUS_STUCK = 123
STATUS_TIME_LIMIT = 124
STATUS_VMM_ERROR = 125
STATUS_NO_KVM = 126
STATUS_NOT_LOADABLE = 127
STATUS_KILLED = 128 + 9


class PyvmmError(Exception):
    """Base of all pyvmm errors. `exit_status` is what the `pyvmm` command ends with when it meets one."""

    exit_status = STATUS_VMM_ERROR


class UsageError(PyvmmError, ValueError):
    """The configuration or the command line asks for something that cannot be meant."""

    exit_status = STATUS_USAGE


class KvmUnavailableError(PyvmmError, OSError):
    """KVM is not there, may not be opened, or lacks a capability that pyvmm cannot do without."""

    exit_status = STATUS_NO_KVM


class KvmError(PyvmmError, OSError):
    """An ioctl failed.

    `ioctl` is its name (`KVM_CREATE_VCPU`), `errno` the error number, `cause` the usual reason where one is known.
    """

    def __init__(self, ioctl: str, errno: int, cause: str = "") -> None:
        text = f"{ioctl} failed: {os.strerror(errno)} (errno {errno})"
        super().__init__(errno, f"{text}; {cause}" if cause else text)
        self.ioctl = ioctl
        self.cause = cause

    def __str__(self) -> str:
        return str(self.strerror)


class LoadError(PyvmmError, ValueError):
    """A kernel or another input file is not what it should be.

    `path` is the file, `problem` what is wrong; `offset` is the byte in the file where, and `expected` what should
    have been there, as far as known.
    """

    exit_status = STATUS_NOT_LOADABLE

    def __init__(self, path: str, problem: str, *, offset: int | None = None, expected: str = "") -> None:
        text = f"{path}: {problem}"
        if offset is not None:
            text += f" at offset {offset:#x}"
        if expected:
            text += f" (expected {expected})"
        super().__init__(text)
        self.path = path
        self.problem = problem
        self.offset = offset
        self.expected = expected


class GuestMemoryError(PyvmmError, IndexError):
    """An access of `length` bytes at guest-physical address `gpa` does not lie wholly in one region of RAM."""

    def __init__(self, gpa: int, length: int) -> None:
        super().__init__(f"no guest RAM holds {length} bytes at {gpa:#x}")
        self.gpa = gpa
        self.length = length


class BusConflictError(PyvmmError, ValueError):
    """A range to be attached overlaps another one or does not fit the bus."""


class ImageError(PyvmmError):
    """A guest image cannot be built or kept: no tool, a source that does not compile, a cache it may not write."""


class BackendError(PyvmmError, OSError):
    """What a device is connected to (a file, a socket, a terminal) cannot be had."""


class GuestAgentError(PyvmmError):
    """The agent in a guest refuses, cannot do what it is asked, or makes no sense. `errno` is the guest's, or 0."""

    def __init__(self, text: str, *, errno: int = 0) -> None:
        super().__init__(text)
        self.errno = errno


class VcpuStuckError(PyvmmError, TimeoutError):
    """A vCPU did not come back from KVM after a kick; its thread is left behind."""


class TimeLimitError(PyvmmError, TimeoutError):
    """What was waited for did not happen within the time given."""

    exit_status = STATUS_TIME_LIMIT


class MissingExtraError(PyvmmError, ImportError):
    """An optional library is missing. `extra` names the extra of pyvmm-kvm that brings it."""

    def __init__(self, feature: str, library: str, extra: str) -> None:
        super().__init__(f"{feature} needs {library}: pip install 'pyvmm-kvm[{extra}]'")
        self.extra = extra
