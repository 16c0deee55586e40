"""Two traces compared: where the accesses of a vCPU part, what is shown of it, and what is counted. No KVM."""

from __future__ import annotations

import pytest

from pyvmm.errors import UsageError
from pyvmm.trace import diff
from pyvmm.trace.diff import CONTEXT, MOST_COUNTS, compare, label, show
from tests.support.madetraces import write


def access(number, vcpu=0, **other):
    """The access number `number` of `vcpu`: a guest writes a letter."""
    record = {
        "kind": "exit",
        "t": 1_500_000 * number,
        "vcpu": vcpu,
        "reason": "IO",
        "run": 1,
        "handle": 1,
        "rip": number,
    }
    record |= {"space": "pio", "at": 0x3F8, "size": 1, "count": 1, "write": True, "data": f"{0x40 + number:02x}"}
    return record | {"device": "serial", "register": "THR", "words": f"THR {0x40 + number:#x}"} | other


@pytest.fixture
def compared(tmp_path):
    """Compares two lists of records."""

    def between(first, second, **chosen):
        paths = [str(write(tmp_path / name, records)) for name, records in (("a", first), ("b", second))]
        found = compare(*paths, **chosen)
        assert found.text() == "".join(f"{line}\n" for line in found.parts)
        return found

    return between


def test_time_and_place_in_the_program_make_no_difference(compared):
    first = [access(number) for number in range(1, 4)] + [{"kind": "exit", "t": 9, "vcpu": 0, "reason": "HLT"}]
    second = [one | {"t": 7, "rip": 5, "run": 99, "handle": 3, "by": "c", "words": ""} for one in first]
    found = compared(first, second)
    assert (found.different, found.parts) == (False, ["the same 4 exits"])


@pytest.mark.parametrize(
    "other", [{"space": "mmio"}, {"at": 0x3F9}, {"size": 2}, {"count": 2}, {"write": False}, {"data": "99"}], ids=str
)
def test_all_that_a_guest_did_and_got_makes_one(other, compared):
    found = compared([access(1), access(2)], [access(1), access(2) | other])
    assert found.different and found.parts[0] == "vCPU 0: the accesses differ from number 2 on"


def test_what_went_before_and_what_came_after_is_shown(compared):
    first = [access(number) for number in range(1, 20)]
    second = [*first[:8], access(60), *first[9:]]
    found = compared(first, second)
    assert found.parts[0] == "vCPU 0: the accesses differ from number 9 on"
    assert found.parts[1 : 1 + CONTEXT] == [f"   {show(one)}" for one in first[8 - CONTEXT : 8]]
    after = [
        *(f" - {show(one)}" for one in first[8 : 8 + CONTEXT]),
        *(f" + {show(one)}" for one in second[8 : 8 + CONTEXT]),
    ]
    assert found.parts[1 + CONTEXT :] == after, "and no counts: each has as many writes to THR"


def test_a_trace_that_ends_earlier_says_so(compared):
    found = compared([access(1), access(2), access(3)], [access(1)])
    assert found.parts[:5] == [
        "vCPU 0: the accesses differ from number 2 on",
        f"   {show(access(1))}",
        f" - {show(access(2))}",
        f" - {show(access(3))}",
        " + (no more accesses)",
    ]
    assert found.parts[5] == "counts that differ:" and found.parts[6].split() == [
        "IO",
        "serial",
        "THR",
        "write",
        "3",
        "1",
    ]


def test_each_vcpu_is_compared_by_itself(compared):
    first = [access(1), access(2, vcpu=1), access(3), access(4, vcpu=1)]
    assert not compared(first, [first[1], first[3], first[0], first[2]]).different
    found = compared(first, [*first[:3], access(5, vcpu=1)])
    assert [part for part in found.parts if part.startswith("vCPU")] == ["vCPU 1: the accesses differ from number 2 on"]


def test_one_device_may_be_compared_alone(compared):
    other = {"device": "rtc", "register": "INDEX", "at": 0x70}
    first, second = [access(1), access(2) | other], [access(1), access(9) | other]
    assert compared(first, second).different
    found = compared(first, second, device="serial")
    assert (found.different, found.parts) == (False, ["the same 1 exits"])
    assert compared(first, second, device="rtc").different
    with pytest.raises(UsageError, match="an access of a device 'toaster'"):
        compared(first, second, device="toaster")


def test_counts_go_by_how_much_they_differ(compared):
    halts = [{"kind": "exit", "t": 100 + number, "vcpu": 0, "reason": "HLT"} for number in range(5)]
    reads = [access(number, at=0x61, write=False, device=None, register=None) for number in range(3)]
    found = compared([access(1), *halts], [access(1), *reads])
    at = found.parts.index("counts that differ:")
    assert [line.split() for line in found.parts[at + 1 :]] == [["HLT", "5", "0"], ["IO", "0x61", "read", "0", "3"]]
    found = compared([access(1), *halts], [access(1)])
    assert found.different and [line.split() for line in found.parts[1:]] == [["HLT", "5", "0"]]
    ports = [access(1, at=port, register=None) for port in range(MOST_COUNTS + 3)]
    found = compared(ports, [])
    assert found.parts[-1] == "  and 3 more" and sum(line.split()[-1] == "0" for line in found.parts) == MOST_COUNTS


def test_an_access_is_one_line():
    assert label(access(1)) == "IO serial THR write"
    assert label(access(1, device=None, register=None, space="mmio", at=0xD0000000, reason="MMIO", write=False)) == (
        "MMIO 0xd0000000 read"
    )
    assert show(access(2)) == "       3.000 ms  writes pio 0x3f8 size 1         serial THR 0x42"
    assert show(access(2, count=2)) == "       3.000 ms  writes pio 0x3f8 size 1 x2      serial THR 0x42"
    string = access(2, count=4, words="", data="41424344", write=False)
    assert show(string) == "       3.000 ms  reads pio 0x3f8 size 1 x4      serial 41424344"
    assert diff.key(access(2)) == ("pio", 0x3F8, 1, 1, True, "42")
