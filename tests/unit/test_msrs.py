"""Names of MSRs, and those that a vCPU starts with."""

from __future__ import annotations

import pytest

from pyvmm.kvm import msrs


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (0x10, "IA32_TSC"),
        (0x1B, "IA32_APIC_BASE"),
        (0x277, "IA32_PAT"),
        (0xC0000080, "EFER"),
        (0xC0000082, "LSTAR"),
        (0x4B564D01, "MSR_KVM_SYSTEM_TIME_NEW"),
        (0x80B, "X2APIC+0xb"),
        (0x900, "MSR 0x900"),
        (0x7FF, "MSR 0x7ff"),
        (0x12345, "MSR 0x12345"),
    ],
)
def test_name(index: int, name: str) -> None:
    assert msrs.name(index) == name


def test_names_differ() -> None:
    assert len(set(msrs.NAMES.values())) == len(msrs.NAMES)


def test_what_a_report_shows_has_a_name() -> None:
    assert len(set(msrs.REPORTED)) == len(msrs.REPORTED)
    assert all(index in msrs.NAMES for index in msrs.REPORTED)


def test_fast_strings_are_on_and_the_other_bits_kvm_s() -> None:
    initial = dict(msrs.initial_msrs(0x1880))
    assert initial[0x1A0] == 0x1881
    assert dict(msrs.initial_msrs(0x1881))[0x1A0] == 0x1881


def test_memory_is_write_back() -> None:
    kind = dict(msrs.initial_msrs(0))[0x2FF]
    assert kind & 0xFF == 6  # write-back, SDM volume 3A, table 12-2
    assert kind >> 11 & 1 == 1  # MTRRs on
    assert kind >> 10 & 1 == 0  # the fixed ones off: unset, they would say uncached below 1 MiB
