"""The compiled module's view of the KVM interface: nothing in it goes without a check against the kernel's header."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from pyvmm._native import build_kvm
from pyvmm._native._kvm import ffi, lib
from pyvmm._native.requests import NEWER_PARTS, REQUESTS
from pyvmm.kvm import constants, exits
from pyvmm.kvm.caps import CAPABILITIES
from pyvmm.trace import spool

HEADERS = (Path("/usr/include/linux/kvm.h"), Path("/usr/include/x86_64-linux-gnu/asm/kvm.h"))
ASSERTION = re.compile(r'_Static_assert\((.*) == (-?\d+), "(.*)"\);')


@pytest.fixture(scope="module")
def layout():
    return build_kvm.abi()


@pytest.fixture(scope="module")
def unit(layout):
    return build_kvm.check_unit(layout)


@pytest.fixture(scope="module")
def asserted(unit):
    """Every expression that the check unit holds against the header, with its value."""
    return {expression: int(value) for expression, value, _text in ASSERTION.findall(unit)}


@pytest.fixture(scope="module")
def headers():
    """The text of the kernel's headers, by the path they are included with."""
    if not all(path.exists() for path in HEADERS):
        pytest.skip("the kernel's headers are missing")
    return {f"{path.parent.name}/{path.name}": path.read_text() for path in HEADERS}


def errors(source: str, tmp_path: Path, headers: dict[str, str] | None = None) -> str:
    """What gcc says to `source`, with `headers` in the place of the installed ones."""
    for name, text in (headers or {}).items():
        path = tmp_path / "include" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    file = tmp_path / "check.c"
    file.write_text(source)
    command = ["gcc", "-std=gnu11", "-fsyntax-only", "-fmax-errors=0", "-Wall", "-I", str(tmp_path / "include")]
    return subprocess.run([*command, str(file)], capture_output=True, text=True, timeout=60).stderr


def test_every_request_of_the_module_is_asserted(asserted):
    requests = {name: getattr(lib, name) for name in dir(lib) if name.startswith("KVM_")}
    assert requests.keys() == {row[0] for row in REQUESTS}
    assert len(requests) == len(REQUESTS) >= 70
    for name, number in requests.items():
        assert asserted[name] == number


def test_every_structure_of_the_module_is_asserted(asserted):
    """Size and every field with a meaning; what the header has no name for, as a member of what holds it."""
    _typedefs, structs, unions = ffi.list_types()
    assert len(structs) > 60
    paths = {text.partition(", ")[2].rstrip(")") for text in asserted if text.startswith("offsetof")}
    for name in structs:
        if not name.startswith((build_kvm.OWN, *build_kvm.OURS)):
            assert asserted[f"sizeof(struct {name})"] == ffi.sizeof(f"struct {name}")
            for field, _ in ffi.typeof(f"struct {name}").fields:
                if not field.startswith(build_kvm.NO_MEANING):
                    expression = f"offsetof(struct {name}, {field})"
                    assert asserted[expression] == ffi.offsetof(f"struct {name}", field)
    for tag, names in (("struct", structs), ("union", unions)):
        for name in names:
            if name.startswith(build_kvm.OURS):
                for field, _ in ffi.typeof(f"{tag} {name}").fields:
                    if not field.startswith(build_kvm.NO_MEANING):
                        assert any(path.endswith(f".{field}") for path in paths), f"{name}.{field}"


def test_the_compiler_lays_structures_out_as_cffi_does(layout):
    """The module was compiled from the file that `layout` was computed from."""
    for name in ffi.list_types()[1]:
        assert ffi.sizeof(f"struct {name}") == layout.sizeof(f"struct {name}")


def test_every_constant_is_asserted(asserted):
    for module in (constants, exits):
        for name, value in vars(module).items():
            if name.startswith("KVM_"):
                assert asserted[name] == value


def test_constants_are_spelt_as_in_the_header(headers):
    """An #ifdef around a misspelt name would hide it. What the installed header is too old for is listed."""
    text = "".join(headers.values())
    newer = {"KVM_EXIT_MEMORY_FAULT"}
    missing = {name for name in build_kvm.constants() if not re.search(rf"\b{name}\b", text)}
    assert missing <= newer
    macros = {row[0] for row in REQUESTS} | set(NEWER_PARTS.values())
    assert {name for name in macros if not re.search(rf"#define\s+{name}\b", text)} <= newer


def test_capabilities_of_the_table_are_those_of_the_header(headers):
    text = "".join(headers.values())
    numbers = {name: int(value) for name, value in re.findall(r"#define\s+(KVM_CAP_\w+)\s+(\d+)", text)}
    assert numbers
    for row in CAPABILITIES:
        assert numbers.get(row.name, row.number) == row.number
    listed = {row.name: row.number for row in CAPABILITIES}
    for name, value in vars(constants).items():
        if name.startswith("KVM_CAP_"):
            assert numbers.get(name, value) == listed.get(name, value) == value


@pytest.mark.needs("gcc")
def test_the_header_agrees(unit, tmp_path):
    assert errors(unit, tmp_path) == ""


@pytest.mark.needs("gcc")
def test_every_assertion_can_fail(unit, tmp_path, headers):
    """With every value one too high, each assertion whose guard is defined here is an error."""
    wrong = ASSERTION.sub(lambda match: f'_Static_assert({match[1]} == {int(match[2]) + 1}, "{match[3]}");', unit)
    said = set(re.findall(r'static assertion failed: "(.*)"', errors(wrong, tmp_path)))
    text = "".join(headers.values())
    guarded = re.findall(r"#ifdef (\w+)\n(.*)\n#endif", unit)
    absent = {ASSERTION.match(line)[3] for guard, line in guarded if not re.search(rf"#define\s+{guard}\b", text)}  # type: ignore[index]
    # A name that is an enumerator in the header is no macro, so its #ifdef hides it.
    expected = {text for _expression, _value, text in ASSERTION.findall(unit)} - absent
    assert said == expected


# --- Linux 4.18 --------------------------------------------------------------------------------------------------


def rename(text: str, structure: str, path: str) -> str:
    """`text` with a field of a structure renamed, as if it had not been invented yet."""
    *outer, field = path.split(".")
    match = re.search(rf"^struct {structure} \{{\n.*?^\}};", text, re.MULTILINE | re.DOTALL)
    if match is None:
        return text
    start, end = match.span()
    if outer:  # only in the nested structure of that name
        end = text.index(f"}} {outer[-1]};", start)
        start = text.rindex("struct {", start, end)
    body = re.sub(rf"\b{field}\b(?=[;,\[)])", f"later_{field}", text[start:end])
    return text[:start] + body + text[end:]


def older(headers: dict[str, str]) -> dict[str, str]:
    """The headers without what came after 4.18, as far as pyvmm knows the macro or the field."""
    newer = {name for name, *_rest, since in REQUESTS if since} | set(NEWER_PARTS.values())
    result = {}
    for name, text in headers.items():
        for macro in newer:
            text = re.sub(rf"^(\s*#\s*define\s+){macro}\b", rf"\1LATER_{macro}", text, flags=re.MULTILINE)
        for part in NEWER_PARTS:
            structure, _, path = part.partition(".")
            if path:
                text = rename(text, structure, path)
            else:
                text = re.sub(rf"\bstruct {structure}\b", f"struct later_{structure}", text)
        result[name] = text
    return result


@pytest.mark.needs("gcc")
def test_the_header_of_linux_4_18_is_enough(unit, tmp_path, headers):
    assert errors(unit, tmp_path, older(headers)) == ""


@pytest.mark.needs("gcc")
@pytest.mark.parametrize(
    "part", sorted(part for part in NEWER_PARTS if part != "kvm_run.memory_fault" and "kvm_stats_desc." not in part)
)
def test_every_guard_of_a_newer_part_is_needed(layout, tmp_path, headers, monkeypatch, part):
    """Without its guard the part does not compile against the old header, so the guard is on the right thing."""
    fewer = {name: macro for name, macro in NEWER_PARTS.items() if name != part}
    monkeypatch.setitem(build_kvm.TABLES, "NEWER_PARTS", fewer)
    said = errors(build_kvm.check_unit(layout), tmp_path, older(headers))
    assert part.rpartition(".")[2] in said


def test_the_module_itself_needs_no_kernel_header_of_kvm():
    sources = [build_kvm.HERE / name for name in ("kvm_abi.h", "kvm_helper.h", "kvm_helper.c")]
    assert not any(re.search(r"#\s*include\s*<linux/", source.read_text()) for source in sources)


def test_the_stub_is_up_to_date(layout):
    assert (build_kvm.HERE / "_kvm.pyi").read_text() == build_kvm.stub(layout)


def test_the_stub_names_what_the_module_has(layout):
    text = build_kvm.stub(layout)
    assert set(re.findall(r"    def (pyvmm_\w+)", text)) == {name for name in dir(lib) if name.startswith("pyvmm_")}


def test_one_module_each_brings_a_compiled_one_to_the_others():
    """The linter of the layers does not see modules that are no Python."""
    package = build_kvm.ROOT / "pyvmm"
    found = {
        (str(path.relative_to(package)), name)
        for path in package.rglob("*.py")
        for name in re.findall(r"^\s*(?:from|import) pyvmm\._native\.(_\w+)", path.read_text(), re.MULTILINE)
    }
    assert found == {("kvm/native.py", "_kvm"), ("virtio/native.py", "_rings")}


def test_a_trace_has_the_same_layout_in_c_and_in_python(layout):
    fields = ["kind", "flags", "size", "reason", "count", "t", "run", "handle", "rip", "address", "value", "tsc"]
    record = layout.new("struct pyvmm_record *", dict(zip(fields, range(1, 13), strict=True)))
    assert spool.RECORD.unpack(bytes(layout.buffer(record))) == tuple(range(1, 13))
    chunk = layout.new(
        "struct pyvmm_chunk *", {"magic": spool.MAGIC, "length": 2, "stream": 3, "lost": 4, "records": 0}
    )
    head = bytes(layout.buffer(chunk))[: spool.CHUNK.size]
    assert spool.CHUNK.unpack(head) == (spool.MAGIC, 2, 3, 4)
    assert layout.offsetof("struct pyvmm_chunk", "records") == spool.CHUNK.size
    assert spool.LOST.unpack_from(head, spool.LOST_AT) == (4,)


@pytest.mark.parametrize("name", ["WRITE", "BY_C", "OPEN", "MMIO", "ACCESS", "EXIT"])
def test_flags_of_a_trace_have_the_same_numbers_in_c_and_in_python(name):
    assert getattr(lib, f"PYVMM_TRACE_{name}") == getattr(spool, name)
