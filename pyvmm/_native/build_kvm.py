"""Builds the extension module `pyvmm._native._kvm`; setuptools runs it through `cffi_modules` in setup.py.

Imports cffi and ioctl_opt, which only a build needs, and nothing of pyvmm: tables of plain data and build_common are
run by path. Run as a program it writes the module's type stub, _kvm.pyi, to stdout. What the build does:

- every request number is `ioctl_opt.IOC(direction, 0xAE, number, sizeof(argument))`, the size from cffi;
- the headers of ours are the cdef, and the same files are compiled; <linux/kvm.h> is not, so that an old one will do;
- a second translation unit, which includes <linux/kvm.h> and nothing of ours, asserts every request number, size,
  offset and constant against it.
"""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ioctl_opt
from cffi import FFI

MODULE = "pyvmm._native._kvm"
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
GENERATED = ROOT / "build" / "native"

ABI = (HERE / "kvm_abi.h").read_text()
RUN_ABI = (HERE / "run_abi.h").read_text()
SOURCES = ("kvm_helper.c", "run_loop.c")
HEADERS = ("kvm_abi.h", "run_abi.h", "kvm_helper.h", "run_loop.h")
TABLES = runpy.run_path(str(HERE / "requests.py"))
COMMON = SimpleNamespace(**runpy.run_path(str(HERE / "build_common.py")))
FUNCTIONS = "".join(COMMON.declarations(HERE / name) for name in ("kvm_helper.h", "run_loop.h"))
CONSTANTS = ("constants.py", "exits.py")
"""Modules of pyvmm/kvm whose KVM_ names are constants of the kernel's interface."""

NO_MEANING = ("pad", "reserved", "dummy")
"""A field whose name begins so is not held against the header: see kvm_abi.h."""


def abi() -> FFI:
    """The structures of kvm_abi.h and run_abi.h, laid out by cffi."""
    ffi = FFI()
    ffi.cdef(ABI)
    ffi.cdef(RUN_ABI)
    return ffi


def request_numbers(ffi: FFI) -> dict[str, int]:
    """Every request's number, by name."""
    directions = {0: 0, TABLES["WRITE"]: ioctl_opt.IOC_WRITE, TABLES["READ"]: ioctl_opt.IOC_READ}
    numbers = {}
    for name, direction, number, argument, _section, _since in TABLES["REQUESTS"]:
        bits = directions[direction & 1] | directions[direction & 2]
        size = ffi.sizeof(argument) if argument else 0
        numbers[name] = ioctl_opt.IOC(bits, TABLES["KVMIO"], number, size)
    return numbers


def constants() -> dict[str, int]:
    """Every constant of the kernel's interface that pyvmm.kvm has, by name."""
    found: dict[str, int] = {}
    for file in CONSTANTS:
        names = runpy.run_path(str(HERE.parent / "kvm" / file))
        found |= {name: value for name, value in names.items() if name.startswith("KVM_") and type(value) is int}
    return found


def macros() -> dict[str, str]:
    """What the C sources take of the kernel's interface beside kvm_abi.h, which the compiler is told."""
    known = constants()
    numbers = {name: str(known[name]) for name in ("KVM_EXIT_IO", "KVM_EXIT_IO_OUT", "KVM_EXIT_MMIO", "KVM_EXIT_INTR")}
    return {"PYVMM_KVM_RUN": f"{request_numbers(abi())['KVM_RUN']:#x}UL", **numbers}


OWN = "pyvmm_"
"""How the structures of run_abi.h begin, which are no part of the kernel's interface."""
OURS = ("kvm_run_", "kvm_vcpu_events_", "kvm_hyperv_exit_", "kvm_xen_exit_", "kvm_irqchip_", "kvm_irq_routing_target")
"""How structures and unions begin that are anonymous in <linux/kvm.h>: checked as members of what holds them."""


def structures(ffi: FFI) -> list[Any]:
    """The structures of kvm_abi.h that <linux/kvm.h> has under the same name."""
    return [ffi.typeof(f"struct {name}") for name in ffi.list_types()[1] if not name.startswith((OWN, *OURS))]


def _members(record: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """The fields of a structure with their paths, and those of what is anonymous in the header below them."""
    for name, field in record.fields or ():
        if name.startswith(NO_MEANING):
            continue
        path = f"{prefix}{name}"
        if name:
            yield path, field
        if field.type.kind in ("struct", "union") and field.type.cname.split()[-1].startswith(OURS):
            yield from _members(field.type, f"{path}." if name else prefix)


def _guard(path: str) -> str:
    """The macro that came with this part of a structure, or "" if Linux 4.18's header has it."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        macro = TABLES["NEWER_PARTS"].get(".".join(parts[:length]))
        if macro:
            return str(macro)
    return ""


def checks(ffi: FFI) -> Iterator[tuple[str, str, int]]:
    """Every assertion against <linux/kvm.h>: (guarding macro or "", expression, value)."""
    newer = {name for name, *_rest, since in TABLES["REQUESTS"] if since}
    for name, number in request_numbers(ffi).items():
        yield name if name in newer else "", name, number
    for record in structures(ffi):
        tag = record.cname.removeprefix("struct ")
        yield _guard(tag), f"sizeof(struct {tag})", ffi.sizeof(record)
        for path, field in _members(record, ""):
            guard = _guard(f"{tag}.{path}")
            yield guard, f"offsetof(struct {tag}, {path})", ffi.offsetof(record, *path.split("."))
            if field.type.kind != "array" or field.type.length is not None:
                yield guard, f"sizeof(((struct {tag} *)0)->{path})", ffi.sizeof(field.type)
    for name, value in constants().items():
        yield name, name, value


def check_unit(ffi: FFI) -> str:
    """The translation unit that holds pyvmm's view of the interface against this machine's <linux/kvm.h>."""
    lines = [
        "/* Written by build_kvm.py. A line that fails to compile names what differs from <linux/kvm.h>. */",
        "#if __has_include(<linux/kvm.h>)",
        "#include <stddef.h>",
        "#include <linux/kvm.h>",
    ]
    for guard, expression, value in checks(ffi):
        line = f'_Static_assert({expression} == {value}, "{expression}");'
        lines += [f"#ifdef {guard}", line, "#endif"] if guard else [line]
    lines += ["#endif", "extern int pyvmm_kvm_header_checked;", "int pyvmm_kvm_header_checked = 1;", ""]
    return "\n".join(lines)


def ffi_builder() -> FFI:
    """What setuptools builds."""
    layout = abi()
    numbers = request_numbers(layout)
    source = ["#include <stdint.h>", '#include "kvm_helper.h"', '#include "run_loop.h"']
    source += [f"#define {name} {number:#x}" for name, number in numbers.items()]
    check = GENERATED / "kvm_check.c"
    check.parent.mkdir(parents=True, exist_ok=True)
    text = check_unit(layout)
    if not check.exists() or check.read_text() != text:
        check.write_text(text)
    builder = FFI()
    builder.cdef(ABI)
    builder.cdef(RUN_ABI)
    builder.cdef(FUNCTIONS + "".join(f"#define {name} {number}\n" for name, number in numbers.items()))
    builder.set_source(
        MODULE,
        "\n".join(source),
        sources=[*(str((HERE / name).relative_to(ROOT)) for name in SOURCES), str(check.relative_to(ROOT))],
        depends=[str(HERE / name) for name in (*HEADERS, "requests.py")],
        include_dirs=[str(HERE)],
        define_macros=list(macros().items()),
        extra_compile_args=COMMON.compile_args(),
    )
    return builder


STUB_DOCSTRING = """\
Types of the compiled module `_kvm`. Not to be edited: build_kvm.py writes it from the headers and requests.py.

A function returns a result that is not negative, or minus an error number; kvm_helper.h and run_loop.h say what each
does. A structure's fields are attributes; kvm_abi.h names the section of the KVM API document that describes it.
"""


def stub(ffi: FFI) -> str:
    """The text of _kvm.pyi."""
    numbers = (*request_numbers(ffi), *re.findall(r"#define (\w+)", RUN_ABI))
    return str(COMMON.stub(STUB_DOCSTRING, FUNCTIONS, numbers, ffi))


if __name__ == "__main__":
    sys.stdout.write(stub(abi()))
elif __name__ == "__cffi__":
    COMMON.check_machine()
    ffibuilder = ffi_builder()
