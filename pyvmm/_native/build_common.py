"""What the build scripts of the compiled modules share: whether this machine can build them, and their type stubs.

Imports the standard library alone, and nothing of pyvmm; the scripts run it by path, because where setuptools runs
them the package cannot be imported.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

STRICT = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]
"""What cffi's own part of a module can stand."""


def compile_args() -> list[str]:
    """Arguments for the compiler; warnings are errors in this project's builds alone: a user's may be an odd one."""
    return ["-std=gnu11", *(STRICT if os.environ.get("PYVMM_WERROR") == "1" else [])]


def obstacle() -> str:
    """Why the modules cannot be built here: one line, or "" if nothing is known to be in the way."""
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


def check_machine() -> None:
    """Raises SystemExit with a line for the user; but making an sdist compiles nothing and must work anywhere."""
    if {"sdist", "egg_info"}.isdisjoint(sys.argv) and (problem := obstacle()):
        raise SystemExit(f"pyvmm: {problem}")


OTHER_LINE = re.compile(r"^#(?!define \w+ \d).*\n", re.MULTILINE)
"""A preprocessor line that cffi does not take."""


def declarations(header: Path) -> str:
    """What a C header declares, as cffi reads it."""
    return OTHER_LINE.sub("", header.read_text())


STUB_IMPORTS = '''
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


def stub(docstring: str, functions: str, numbers: Iterable[str], ffi: Any) -> str:
    """The text of a module's type stub: its `functions` (C declarations), `numbers` by name, and structures."""
    lines = ["class Lib:"]
    for kind, name, parameters in re.findall(r"^(int|void) (\w+)\(([^)]*)\);", functions, re.MULTILINE):
        typed = [
            f"{words[-1].lstrip('*')}: {'Any' if '*' in words[-1] else 'int'}"
            for words in (parameter.split() for parameter in parameters.split(","))
            if words != ["void"]
        ]
        result = "None" if kind == "void" else "int"
        lines.append(f"    def {name}({', '.join(['self', *typed])}) -> {result}: ...")
    lines += [f"    {name}: int" for name in numbers]
    lines += ["", "ffi: FFI", "lib: Lib", ""]
    _typedefs, structs, unions = ffi.list_types()
    for tag, names in (("struct", structs), ("union", unions)):
        for name in names:
            lines.append(f"class {name}:")
            lines += [f"    {field}: {_stub_type(of.type)}" for field, of in ffi.typeof(f"{tag} {name}").fields]
            lines.append("")
    return f'"""{docstring}"""\n{STUB_IMPORTS}' + "\n".join(lines[:-1]) + "\n"
