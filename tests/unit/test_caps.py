"""The table of capabilities against the kernel's header, and what a missing one says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyvmm.errors import STATUS_NO_KVM, KvmUnavailableError
from pyvmm.kvm import assembly, constants
from pyvmm.kvm.caps import CAPABILITIES, Capability, check_required, missing_required

HEADER = Path("/usr/include/linux/kvm.h")
REQUIRED = [row for row in CAPABILITIES if row.required]


class Lacking:
    """A KVM that has everything but the given numbers."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def check_extension(self, cap: int) -> int:
        return int(cap not in self.numbers)


@pytest.fixture(scope="module")
def header() -> dict[str, int]:
    if not HEADER.exists():
        pytest.skip(f"there is no {HEADER}")
    found = re.findall(r"^#define\s+(KVM_CAP_\w+)\s+(\d+)", HEADER.read_text(), re.MULTILINE)
    return {name: int(number) for name, number in found}


@pytest.mark.parametrize("row", CAPABILITIES, ids=lambda row: row.name)
def test_number_is_the_header_s(row: Capability, header: dict[str, int]) -> None:
    if row.name not in header:
        assert row.number > max(header.values()), "absent, though the header knows later ones"
        pytest.skip("a capability newer than this machine's kvm.h")
    assert row.number == header[row.name]


def test_names_and_numbers_occur_once_and_in_order() -> None:
    numbers = [row.number for row in CAPABILITIES]
    assert numbers == sorted(set(numbers))
    assert len({row.name for row in CAPABILITIES}) == len(CAPABILITIES)


def test_constants_give_the_same_numbers() -> None:
    theirs = {name: value for name, value in vars(constants).items() if name.startswith("KVM_CAP_")}
    ours = {row.name: row.number for row in CAPABILITIES}
    shared = theirs.keys() & ours.keys()
    assert len(shared) > 40
    assert {name: theirs[name] for name in shared} == {name: ours[name] for name in shared}


def test_every_required_one_has_a_use_and_came_before_linux_4_18() -> None:
    assert REQUIRED
    for row in REQUIRED:
        assert row.use
        assert tuple(map(int, row.since.split("."))) < (4, 18)


def test_nothing_is_missing_where_all_is_there() -> None:
    assert missing_required(Lacking()) == []
    check_required(Lacking())


def test_an_optional_one_may_be_missing() -> None:
    check_required(Lacking(*(row.number for row in CAPABILITIES if not row.required)))


@pytest.mark.parametrize("row", REQUIRED, ids=lambda row: row.name)
def test_a_missing_one_is_named_with_its_linux(row: Capability) -> None:
    with pytest.raises(KvmUnavailableError) as caught:
        check_required(Lacking(row.number))
    text = str(caught.value)
    assert text == f"this kernel's KVM lacks {row.name} ({row.use}; since Linux {row.since})"
    assert caught.value.exit_status == STATUS_NO_KVM


def test_several_missing_ones_are_one_line() -> None:
    with pytest.raises(KvmUnavailableError) as caught:
        check_required(Lacking(*(row.number for row in REQUIRED)))
    text = str(caught.value)
    assert "\n" not in text
    assert all(f"{row.name} (" in text for row in REQUIRED)


def test_what_every_run_asks_for_is_what_the_table_requires():
    assert list(assembly.REQUIRED) == [row.number for row in REQUIRED]
