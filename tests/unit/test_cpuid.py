"""Names of CPU features, `--cpu`, and the CPUID that a guest gets from what KVM supports."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.errors import STATUS_USAGE, UsageError
from pyvmm.kvm.cpufeatures import canonical, feature_bits, parse_cpu
from pyvmm.kvm.cpuid import KVM_SIGNATURE, has_feature, select_features, vendor, with_topology
from pyvmm.kvm.entries import CpuidEntry

INDEXED = 1
VENDORS = {"intel": b"GenuineIntel", "amd": b"AuthenticAMD"}


def leaf(function: int, index: int = 0, flags: int = 0, **registers: int) -> CpuidEntry:
    return CpuidEntry(function, index, flags, **registers)


def named(function: int, name: bytes, eax: int) -> CpuidEntry:
    words = [int.from_bytes(name[i : i + 4], "little") for i in (0, 4, 8)]
    ebx, second, third = words
    if function:
        return leaf(function, eax=eax, ebx=ebx, ecx=second, edx=third)
    return leaf(function, eax=eax, ebx=ebx, edx=second, ecx=third)


def supported(maker: str, highest: int = 0x1F) -> list[CpuidEntry]:
    """What KVM_GET_SUPPORTED_CPUID might say: every feature bit set but those that KVM leaves to its caller."""
    everything = 0xFFFFFFFF
    entries = [
        named(0, VENDORS[maker], highest),
        # EBX: APIC id 0xAA of the processor that answered, 0x77 ids, CLFLUSH line 8, brand 3
        leaf(1, eax=0x806EA, ebx=0xAA770803, ecx=everything & ~(1 << 31 | 1 << 24), edx=everything),
        leaf(6, eax=4),
        leaf(7, 0, INDEXED, eax=1, ebx=everything, ecx=everything, edx=everything),
        leaf(7, 1, INDEXED, eax=everything),
        leaf(0xB, 0, INDEXED, eax=1, ebx=2, ecx=0x100, edx=0xAA),
        leaf(0xB, 1, INDEXED, eax=5, ebx=24, ecx=0x201, edx=0xAA),
        leaf(0xD, 0, INDEXED, eax=0xE7, ebx=0x980, ecx=0x980),
        leaf(0xD, 1, INDEXED, eax=0xF),
        named(0x40000000, KVM_SIGNATURE, 0x40000001),
        leaf(0x40000001, eax=0x0100FEFF),
        leaf(0x80000000, eax=0x80000021),
        leaf(0x80000001, ecx=everything, edx=everything),
        leaf(0x80000007, edx=0x100),
        leaf(0x80000008, eax=0x3030, ebx=everything, ecx=0x3A0FF),
    ]
    if maker == "intel":
        # EAX: type, level, then 3 ids share it (L3: 63), 15 cores
        entries.append(leaf(4, 0, INDEXED, eax=1 | 1 << 5 | 3 << 14 | 15 << 26, ebx=0x1C0003F))
        entries.append(leaf(4, 2, INDEXED, eax=3 | 2 << 5 | 3 << 14 | 15 << 26, ebx=0x3C0003F))
        entries.append(leaf(4, 3, INDEXED, eax=3 | 3 << 5 | 63 << 14 | 15 << 26, ebx=0x3C0003F))
        entries.append(leaf(4, 4, INDEXED))
        entries.append(leaf(0x1F, 0, INDEXED, eax=1, ebx=2, ecx=0x100, edx=0xAA))
    else:
        entries.append(leaf(0x8000001D, 0, INDEXED, eax=1 | 1 << 5 | 1 << 14, ebx=0x1C0003F))
        entries.append(leaf(0x8000001D, 2, INDEXED, eax=3 | 2 << 5 | 1 << 14, ebx=0x1C0003F))
        entries.append(leaf(0x8000001D, 3, INDEXED, eax=3 | 3 << 5 | 15 << 14, ebx=0x3C0003F))
        entries.append(leaf(0x8000001E, eax=0xAA, ebx=0x101, ecx=0x7))
        entries.append(leaf(0x80000026, 0, INDEXED, eax=1, ebx=2, ecx=0x100, edx=0xAA))
    return entries


def find(entries: list[CpuidEntry], function: int, index: int = 0) -> CpuidEntry:
    (entry,) = [entry for entry in entries if (entry.function, entry.index) == (function, index)]
    return entry


# --- Names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "place"),
    [  # Intel SDM volume 2A, tables 3-17 to 3-20; AMD APM volume 3, appendix E; the KVM CPUID document
        ("fpu", (1, 0, "edx", 0)),
        ("apic", (1, 0, "edx", 9)),
        ("sse2", (1, 0, "edx", 26)),
        ("pni", (1, 0, "ecx", 0)),
        ("cx16", (1, 0, "ecx", 13)),
        ("pcid", (1, 0, "ecx", 17)),
        ("x2apic", (1, 0, "ecx", 21)),
        ("popcnt", (1, 0, "ecx", 23)),
        ("tsc_deadline_timer", (1, 0, "ecx", 24)),
        ("xsave", (1, 0, "ecx", 26)),
        ("avx", (1, 0, "ecx", 28)),
        ("rdrand", (1, 0, "ecx", 30)),
        ("hypervisor", (1, 0, "ecx", 31)),
        ("arat", (6, 0, "eax", 2)),
        ("fsgsbase", (7, 0, "ebx", 0)),
        ("avx2", (7, 0, "ebx", 5)),
        ("smep", (7, 0, "ebx", 7)),
        ("erms", (7, 0, "ebx", 9)),
        ("avx512f", (7, 0, "ebx", 16)),
        ("smap", (7, 0, "ebx", 20)),
        ("clflushopt", (7, 0, "ebx", 23)),
        ("sha_ni", (7, 0, "ebx", 29)),
        ("avx512vl", (7, 0, "ebx", 31)),
        ("umip", (7, 0, "ecx", 2)),
        ("pku", (7, 0, "ecx", 3)),
        ("la57", (7, 0, "ecx", 16)),
        ("rdpid", (7, 0, "ecx", 22)),
        ("fsrm", (7, 0, "edx", 4)),
        ("md_clear", (7, 0, "edx", 10)),
        ("amx_tile", (7, 0, "edx", 24)),
        ("spec_ctrl", (7, 0, "edx", 26)),
        ("arch_capabilities", (7, 0, "edx", 29)),
        ("intel_ssbd", (7, 0, "edx", 31)),
        ("avx_vnni", (7, 1, "eax", 4)),
        ("xsaves", (0xD, 1, "eax", 3)),
        ("syscall", (0x80000001, 0, "edx", 11)),
        ("nx", (0x80000001, 0, "edx", 20)),
        ("rdtscp", (0x80000001, 0, "edx", 27)),
        ("lm", (0x80000001, 0, "edx", 29)),
        ("svm", (0x80000001, 0, "ecx", 2)),
        ("abm", (0x80000001, 0, "ecx", 5)),
        ("topoext", (0x80000001, 0, "ecx", 22)),
        ("mwaitx", (0x80000001, 0, "ecx", 29)),
        ("invtsc", (0x80000007, 0, "edx", 8)),
        ("clzero", (0x80000008, 0, "ebx", 0)),
        ("ibpb", (0x80000008, 0, "ebx", 12)),
        ("ssbd", (0x80000008, 0, "ebx", 24)),
        ("npt", (0x8000000A, 0, "edx", 0)),
        ("srso_no", (0x80000021, 0, "eax", 29)),
        ("kvm_pv_unhalt", (0x40000001, 0, "eax", 7)),
        ("kvm_pv_tlb_flush", (0x40000001, 0, "eax", 9)),
        ("kvm_pv_ipi", (0x40000001, 0, "eax", 11)),
        ("kvm_pv_sched_yield", (0x40000001, 0, "eax", 13)),
        ("kvmclock_stable_bit", (0x40000001, 0, "eax", 24)),
    ],
)
def test_a_feature_is_where_the_manual_has_it(name: str, place: tuple[int, int, str, int]) -> None:
    assert feature_bits()[name] == (place,)


def test_kvmclock_is_both_of_its_bits() -> None:
    assert [bit for _, _, _, bit in feature_bits()["kvmclock"]] == [0, 3]


def test_no_register_has_more_than_32_bits_and_no_bit_two_names() -> None:
    places = [place for bits in feature_bits().values() for place in bits]
    assert len(places) == len(set(places)) > 250
    assert all(0 <= bit < 32 for _, _, _, bit in places)


@pytest.mark.parametrize(
    ("given_name", "meant"),
    [("sse4.1", "sse4_1"), ("SSE3", "pni"), ("tsc-deadline", "tsc_deadline_timer"), ("kvm-pv-ipi", "kvm_pv_ipi")],
)
def test_spellings(given_name: str, meant: str) -> None:
    assert canonical(given_name) == meant
    assert meant in feature_bits()


def test_every_alias_leads_somewhere() -> None:
    from pyvmm.kvm import cpufeatures

    for alias, name in cpufeatures._ALIASES.items():
        assert name in feature_bits()
        assert alias not in feature_bits()


# --- --cpu -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("host", {}),
        ("host,-cx16,+x2apic", {"cx16": False, "x2apic": True}),
        ("host, -cx16 , +avx2", {"cx16": False, "avx2": True}),
        ("host,+avx2,-avx2", {"avx2": False}),
    ],
)
def test_cpu_is_read(text: str, wanted: dict[str, bool]) -> None:
    assert parse_cpu(text) == wanted


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "begins with the model"),
        ("qemu64", "'host'"),
        ("+cx16", "'host'"),
        ("host,cx16", "'cx16' is neither"),
        ("host,", "'' is neither"),
        ("host,-", "'-' is neither"),
        ("host,+cx61", "'cx61'; did you mean cx16"),
        ("host,+avx_2", "avx2"),
        ("host,+zzzzzz", "called 'zzzzzz'"),
        ("host,+.", "called '.'"),
    ],
)
def test_wrong_cpu_is_one_clear_line(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_cpu(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == STATUS_USAGE


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        wanted = parse_cpu("host," + text)
    except UsageError:
        return
    assert wanted.keys() <= feature_bits().keys()


# --- Features --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maker", VENDORS)
def test_plain_host_is_what_kvm_supports_and_the_hypervisor_bit(maker: str) -> None:
    given_entries = supported(maker)
    entries = select_features(given_entries, {})
    assert has_feature(entries, "hypervisor")
    assert not has_feature(entries, "tsc_deadline_timer")
    expected = {(e.function, e.index): e for e in given_entries if e.function != 0x80000026}
    expected[1, 0].ecx |= 1 << 31
    assert {(e.function, e.index): e for e in entries} == expected
    assert all(mine is not theirs for mine in entries for theirs in given_entries)


def test_vendor_names_processor_and_hypervisor() -> None:
    assert vendor(supported("amd")) == b"AuthenticAMD"
    assert vendor(supported("intel")) == b"GenuineIntel"
    assert vendor(supported("intel"), 0x40000000) == KVM_SIGNATURE
    assert vendor([]) == b""


def test_kvm_s_timer_shows_where_kvm_has_it() -> None:
    assert has_feature(select_features(supported("intel"), {}, tsc_deadline=True), "tsc_deadline_timer")


def test_features_go_and_nothing_else_does() -> None:
    before = select_features(supported("intel"), {})
    after = select_features(supported("intel"), {"cx16": False, "smap": False, "xsaves": False})
    for name in ("cx16", "smap", "xsaves"):
        assert not has_feature(after, name)
    changed = [(a.function, a.index) for a, b in zip(after, before, strict=True) if a != b]
    assert changed == [(1, 0), (7, 0), (0xD, 1)]
    assert find(after, 1).ecx == find(before, 1).ecx & ~(1 << 13)
    assert find(after, 7).ebx == find(before, 7).ebx & ~(1 << 20)


def test_quirks_take_features_away_unless_asked_for() -> None:
    names = ("cx16", "kvm_pv_unhalt", "kvm_pv_ipi", "kvm_pv_sched_yield", "kvm_pv_tlb_flush")
    entries = select_features(supported("amd"), {"cx16": True}, without=names)
    assert has_feature(entries, "cx16")
    assert not any(has_feature(entries, name) for name in names[1:])
    assert find(entries, 0x40000001).eax == 0x0100FEFF & ~(1 << 7 | 1 << 9 | 1 << 11 | 1 << 13)
    assert has_feature(entries, "kvmclock")
    assert vendor(entries, 0x40000000) == KVM_SIGNATURE


def test_a_feature_that_kvm_lacks_is_refused_by_name() -> None:
    entries = [leaf(1), leaf(7, 0, INDEXED)]
    with pytest.raises(UsageError, match=r"this host's KVM cannot give a guest 'avx2', 'x2apic'"):
        select_features(entries, {"avx2": True, "cx16": False, "x2apic": True})
    with pytest.raises(UsageError, match="'sha512'"):
        select_features(entries, {"sha512": True})  # not even its subleaf is there


def test_a_feature_may_be_taken_away_that_is_not_there() -> None:
    entries = select_features([leaf(1)], {"avx2": False, "cx16": False})
    assert [entry.function for entry in entries] == [1]


def test_amd_repeats_bits_of_leaf_1_and_they_go_together() -> None:
    amd = find(select_features(supported("amd"), {"pge": False, "sse": False}), 0x80000001)
    assert amd.edx == 0xFFFFFFFF & ~(1 << 13)  # SSE's bit 25 means something else there
    intel = find(select_features(supported("intel"), {"pge": False}), 0x80000001)
    assert intel.edx == 0xFFFFFFFF


# --- Topology --------------------------------------------------------------------------------------------------

COUNTS = [1, 2, 3, 4, 6, 16, 64, 255]


@pytest.mark.parametrize("maker", VENDORS)
@pytest.mark.parametrize("vcpus", COUNTS)
def test_every_vcpu_is_a_core_with_its_index_as_apic_id(maker: str, vcpus: int) -> None:
    template = select_features(supported(maker), {})
    for vcpu in {0, vcpus // 2, vcpus - 1}:
        entries = with_topology(template, vcpu, vcpus)
        assert find(entries, 1).ebx >> 24 == vcpu
        assert find(entries, 1).ebx & 0xFFFF == 0x0803
        assert find(entries, 1).edx >> 28 & 1 == (vcpus > 1)
        threads, cores, end = (find(entries, 0xB, index) for index in range(3))
        assert all(level.flags == INDEXED and level.edx == vcpu for level in (threads, cores, end))
        assert (threads.eax, threads.ebx, threads.ecx) == (0, 1, 0x100)
        assert (cores.ebx, cores.ecx) == (vcpus, 0x201)
        assert (end.eax, end.ebx, end.ecx) == (0, 0, 2)
        # The shift must tell every vCPU apart, and no bit more than it takes.
        assert vcpus <= 1 << cores.eax < 2 * vcpus


@pytest.mark.parametrize("vcpus", COUNTS)
def test_intel_caches_and_ids(vcpus: int) -> None:
    entries = with_topology(select_features(supported("intel"), {}), 0, vcpus)
    ids = 1 << (vcpus - 1).bit_length()
    assert find(entries, 1).ebx >> 16 & 0xFF == min(ids, 255)
    first, second, third, end = (find(entries, 4, index) for index in (0, 2, 3, 4))
    assert first.eax & 0x3FFF == 1 | 1 << 5
    assert first.eax >> 14 & 0xFFF == second.eax >> 14 & 0xFFF == 0
    assert third.eax >> 14 & 0xFFF == ids - 1
    assert first.eax >> 26 == third.eax >> 26 == min(ids - 1, 63)
    assert end.eax == 0
    assert [find(entries, 0x1F, i).ecx for i in range(3)] == [0x100, 0x201, 2]
    # AMD's fields stay as they were
    assert find(entries, 0x80000008).ecx == 0x3A0FF
    assert find(entries, 0x80000001).ecx == 0xFFFFFFFF


@pytest.mark.parametrize("vcpus", COUNTS)
def test_amd_cores_and_caches(vcpus: int) -> None:
    entries = with_topology(select_features(supported("amd"), {}), vcpus - 1, vcpus)
    bits = (vcpus - 1).bit_length()
    assert find(entries, 1).ebx >> 16 & 0xFF == vcpus
    sizes = find(entries, 0x80000008)
    assert sizes.ecx & 0xFF == vcpus - 1
    assert sizes.ecx >> 12 & 0xF == bits
    assert sizes.ecx >> 16 == 3
    assert find(entries, 0x80000001).ecx >> 1 & 1 == (vcpus > 1)
    node = find(entries, 0x8000001E)
    assert (node.eax, node.ebx, node.ecx) == (vcpus - 1, vcpus - 1, 0)
    assert find(entries, 0x8000001D, 0).eax >> 14 & 0xFFF == 0
    assert find(entries, 0x8000001D, 2).eax >> 14 & 0xFFF == 0
    assert find(entries, 0x8000001D, 3).eax >> 14 & 0xFFF == (1 << bits) - 1
    assert not [entry for entry in entries if entry.function in (0x80000026, 0x1F)]


def test_an_old_processor_gets_no_topology_leaf() -> None:
    old = [entry for entry in supported("intel", highest=0xA) if entry.function not in (0xB, 0x1F)]
    entries = with_topology(select_features(old, {}), 0, 4)
    assert not [entry for entry in entries if entry.function in (0xB, 0x1F)]


def test_topology_does_not_touch_its_input() -> None:
    template = select_features(supported("amd"), {})
    before = [repr(entry) for entry in template]
    assert with_topology(template, 1, 2) != with_topology(template, 0, 2)
    assert [repr(entry) for entry in template] == before


@pytest.mark.parametrize("maker", VENDORS)
def test_no_leaf_is_given_twice(maker: str) -> None:
    entries = with_topology(select_features(supported(maker), {}), 0, 4)
    keys = sorted((entry.function, entry.index) for entry in entries)
    assert all(a != b for a, b in pairwise(keys))
