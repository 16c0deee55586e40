"""Builds the extension module `pyvmm._native._kvm`; setuptools runs it through `cffi_modules` in setup.py.

Imports cffi and ioctl_opt, which only a build needs, and nothing of pyvmm: tables of plain data are run by path. Run
as a program it writes the module's type stub, _kvm.pyi, to stdout. What the build does:

- every request number is `ioctl_opt.IOC(direction, 0xAE, number, sizeof(argument))`, the size from cffi;
- kvm_abi.h is the cdef, and the same file is compiled; <linux/kvm.h> is not, so that an old one will do;
- a second translation unit, which includes <linux/kvm.h> and nothing of ours, asserts every request number, size,
  offset and constant against it.
"""

from __future__ import annotations

import os
import platform
import re
import runpy
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ioctl_opt
from cffi import FFI

MODULE = "pyvmm._native._kvm"
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
GENERATED = ROOT / "build" / "native"

FUNCTIONS = """
int pyvmm_ioctl(int fd, unsigned long request, unsigned long value);
int pyvmm_ioctl_ptr(int fd, unsigned long request, void *argument);
int pyvmm_kick_install(void);
int pyvmm_run(int vcpu_fd, int *runner, int signal_number);
int pyvmm_kick(const int *runner, int signal_number);
int pyvmm_cmpxchg(void *address, int size, uint64_t *expected, const uint64_t *desired);
"""

ABI = (HERE / "kvm_abi.h").read_text()
TABLES = runpy.run_path(str(HERE / "requests.py"))
CONSTANTS = ("constants.py", "exits.py")
"""Modules of pyvmm/kvm whose KVM_ names are constants of the kernel's interface."""

NO_MEANING = ("pad", "reserved", "dummy")
"""A field whose name begins so is not held against the header: see kvm_abi.h."""


def abi() -> FFI:
    """The structures of kvm_abi.h, laid out by cffi."""
    ffi = FFI()
    ffi.cdef(ABI)
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


OURS = ("kvm_run_", "kvm_vcpu_events_", "kvm_hyperv_exit_", "kvm_xen_exit_", "kvm_irqchip_", "kvm_irq_routing_target")
"""How structures and unions begin that are anonymous in <linux/kvm.h>: checked as members of what holds them."""


def structures(ffi: FFI) -> list[Any]:
    """The structures of kvm_abi.h that <linux/kvm.h> has under the same name."""
    return [ffi.typeof(f"struct {name}") for name in ffi.list_types()[1] if not name.startswith(OURS)]


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


def obstacle() -> str:
    """Why the module cannot be built here: one line, or "" if nothing is known to be in the way."""
    if sys.platform != "linux":
        return f"KVM is part of Linux, and this is {platform.system() or sys.platform}"
    if platform.machine() not in ("x86_64", "AMD64") or sys.maxsize < 1 << 32:
        return f"only 64-bit x86 is supported, and this is {platform.machine() or 'unknown'}"
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"there is no C compiler: {compiler} was not found (Debian: apt install gcc; or set CC)"
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        return f"{header} is missing (Debian: apt install python3-dev)"
    return ""


def ffi_builder() -> FFI:
    """What setuptools builds."""
    layout = abi()
    numbers = request_numbers(layout)
    source = ["#include <stdint.h>", '#include "kvm_abi.h"', '#include "kvm_helper.h"']
    source += [f"#define {name} {number:#x}" for name, number in numbers.items()]
    check = GENERATED / "kvm_check.c"
    check.parent.mkdir(parents=True, exist_ok=True)
    text = check_unit(layout)
    if not check.exists() or check.read_text() != text:
        check.write_text(text)
    strict = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]
    builder = FFI()
    builder.cdef(ABI)
    builder.cdef(FUNCTIONS + "".join(f"#define {name} {number}\n" for name, number in numbers.items()))
    builder.set_source(
        MODULE,
        "\n".join(source),
        sources=[str((HERE / "kvm_helper.c").relative_to(ROOT)), str(check.relative_to(ROOT))],
        depends=[str(HERE / name) for name in ("kvm_abi.h", "kvm_helper.h", "requests.py")],
        include_dirs=[str(HERE)],
        define_macros=[("PYVMM_KVM_RUN", hex(numbers["KVM_RUN"]))],
        # A user's odd compiler must not break an installation: warnings are errors in this project's builds alone.
        extra_compile_args=["-std=gnu11", *(strict if os.environ.get("PYVMM_WERROR") == "1" else [])],
    )
    return builder


STUB_HEAD = '''\
"""Types of the compiled module `_kvm`. Not to be edited: build_kvm.py writes it from kvm_abi.h and requests.py.

A function returns a result that is not negative, or minus an error number; kvm_helper.h says what each does. A
structure's fields are attributes; kvm_abi.h names the section of the KVM API document that describes it.
"""

from collections.abc import Iterator
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")

class Array(Generic[T]):
    """A C array: bounds-checked, without negative indexes."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[T]: ...
    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Array[T]: ...
    @overload
    def __setitem__(self, index: int, value: T) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Any) -> None: ...

class FFI:
    """What pyvmm uses of a compiled cffi module's `ffi`."""

    NULL: Any
    def new(self, cdecl: str, init: Any = ...) -> Any: ...
    def cast(self, cdecl: str, value: Any) -> Any: ...
    def sizeof(self, cdecl: Any) -> int: ...
    def offsetof(self, cdecl: str, *fields: str) -> int: ...
    def addressof(self, cdata: Any, *fields: str) -> Any: ...
    def from_buffer(self, cdecl: Any, buffer: Any = ..., require_writable: bool = ...) -> Any: ...
    def buffer(self, cdata: Any, size: int = ...) -> Any: ...
    def unpack(self, cdata: Any, length: int) -> Any: ...
    def memmove(self, to: Any, source: Any, length: int) -> None: ...
    def release(self, cdata: Any) -> None: ...
    def typeof(self, cdecl: Any) -> Any: ...
    def list_types(self) -> tuple[list[str], list[str], list[str]]: ...

'''


def _stub_type(kind: Any) -> str:
    if kind.kind in ("struct", "union"):
        return str(kind.cname.split()[-1])
    if kind.kind == "array":
        return f"Array[{_stub_type(kind.item)}]"
    return "Any" if kind.kind == "pointer" else "bytes" if kind.cname == "char" else "int"


def stub(ffi: FFI) -> str:
    """The text of _kvm.pyi."""
    lines = ["class Lib:"]
    for declaration in FUNCTIONS.strip().splitlines():
        name, parameters = re.fullmatch(r"int (\w+)\((.*)\);", declaration).groups()  # type: ignore[union-attr]
        typed = [
            f"{words[-1].lstrip('*')}: {'Any' if '*' in words[-1] else 'int'}"
            for words in (parameter.split() for parameter in parameters.split(","))
            if words != ["void"]
        ]
        lines.append(f"    def {name}({', '.join(['self', *typed])}) -> int: ...")
    lines += [f"    {name}: int" for name in request_numbers(ffi)]
    lines += ["", "ffi: FFI", "lib: Lib", ""]
    _typedefs, structs, unions = ffi.list_types()
    for tag, names in (("struct", structs), ("union", unions)):
        for name in names:
            lines.append(f"class {name}:")
            lines += [f"    {field}: {_stub_type(of.type)}" for field, of in ffi.typeof(f"{tag} {name}").fields]
            lines.append("")
    return STUB_HEAD + "\n".join(lines[:-1]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(stub(abi()))
elif __name__ == "__cffi__":
    # setuptools runs this file for every command. Making an sdist compiles nothing and must work anywhere.
    if {"sdist", "egg_info"}.isdisjoint(sys.argv) and (problem := obstacle()):
        raise SystemExit(f"pyvmm: {problem}")
    ffibuilder = ffi_builder()
