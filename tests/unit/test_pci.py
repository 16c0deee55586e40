"""PCI without virtio: configuration space, BARs that move, the host bridge, and windows on the bus."""

import threading

import pytest

from pyvmm.bus import Bus
from pyvmm.pci import spec
from pyvmm.pci.bridge import HostBridge
from pyvmm.pci.config import Function
from pyvmm.pci.decoder import Decoder
from tests.support.headers import macros

ONES = 0xFFFFFFFF
PLACES = [(offset, size) for offset in range(256) for size in (1, 2, 4) if offset % 4 + size <= 4]
"""All accesses that a data port can make."""
MEMORY = spec.COMMAND_MEMORY
BAR0, BAR1 = spec.BASE_ADDRESS_0, spec.BASE_ADDRESS_0 + 4


class Window:
    """What is behind a BAR; remembers accesses."""

    def __init__(self, lock, length=0x1000, name="window"):
        self.name, self.lock, self.length = name, lock, length
        self.seen = []

    def read(self, offset, size):
        assert self.lock.locked()
        self.seen.append(("read", offset, size))
        return 0x5A

    def write(self, offset, size, value):
        assert self.lock.locked()
        self.seen.append(("write", offset, size, value))


class Behind:
    """What is behind a capability; remembers accesses."""

    def __init__(self):
        self.seen = []

    def reading(self, start, end):
        self.seen.append(("read", start, end))

    def written(self, start, end):
        self.seen.append(("write", start, end))


class Card(Function):
    """A function that notes where its windows are said to go."""

    def __init__(self, *lengths, name="card"):
        super().__init__(name, 0x1AF4, 0x1042, 0x018000, 1, (0x1AF4, 0x42), pin=1)
        for bar, length in enumerate(lengths):
            self.add_bar(bar, Window(self.lock, length, f"{name} {bar}"))
        self.moves = []

    def follow(self):
        self.on_decode(lambda *move: self.moves.append(move))
        return self

    def moved(self):
        found, self.moves = self.moves, []
        return found


@pytest.mark.needs("gcc")
def test_constants_are_those_of_the_header(tmp_path):
    ours = {
        f"PCI_{name}": value
        for name, value in vars(spec).items()
        if (name.isupper() and not name.startswith(("CONFIG_", "CLASS_", "DEVICES"))) or name == "CLASS_PROG"
    }
    assert len(ours) > 30
    assert macros(tmp_path, "linux/pci_regs.h", list(ours)) == ours


# --- The configuration space ------------------------------------------------------------------------------------------


def test_a_function_says_what_it_is():
    """PCI 3.0, 6.2.1"""
    function = Card()
    assert function.read(0, 4) == 0x10421AF4 and function.read(8, 4) == 0x01800001
    assert function.read(0x2C, 4) == 0x00421AF4
    assert function.read(spec.HEADER_TYPE, 1) == 0 and function.read(spec.INTERRUPT_PIN, 1) == 1
    assert function.read(spec.STATUS, 2) == 0 and function.read(spec.CAPABILITY_LIST, 1) == 0


@pytest.mark.parametrize("value", [0, ONES, 0x5A5A5A5A, 0xA5A5A5A5])
def test_writes_of_every_width_and_place_change_what_is_writable_and_nothing_else(value):
    function = Card(0x4000, 0x1000)
    function.add_capability(9, bytes(range(2, 16)), bytes(13) + b"\xf0")
    writable = bytearray(256)
    writable[4:6] = b"\x06\x04"
    writable[0x0C:0x0E] = b"\xff\xff"
    writable[0x10:0x18] = b"\x00\xc0\xff\xff\x00\xf0\xff\xff"
    writable[spec.INTERRUPT_LINE] = 0xFF
    writable[0x4F] = 0xF0
    for offset, size in PLACES:
        before = bytes(function.space)
        written = value & (1 << 8 * size) - 1
        function.write(offset, size, written)
        for at in range(256):
            mask = writable[at] if offset <= at < offset + size else 0
            expected = before[at] & ~mask | written >> 8 * (at - offset) & mask if mask else before[at]
            assert function.space[at] == expected, (offset, size, at)
    for offset, size in PLACES:
        assert function.read(offset, size) == int.from_bytes(function.space[offset : offset + size], "little")


def test_the_interrupt_status_is_shown_and_not_cleared_by_writing():
    """PCI 3.0, 6.2.3"""
    function = Card()
    function.show_interrupt(True)
    assert function.read(spec.STATUS, 2) == 8
    function.write(spec.COMMAND, 4, ONES)
    assert function.read(spec.STATUS, 2) == 8
    function.show_interrupt(False)
    assert function.read(spec.STATUS, 2) == 0


def test_capabilities_are_a_list_that_begins_at_the_pointer():
    """PCI 3.0, 6.7"""
    function, behind = Card(), [Behind(), Behind()]
    assert function.add_capability(9, b"\x05abc", bytes(4), behind[0]) == 0x40
    assert function.add_capability(0x11, bytes(10), bytes(10), behind[1]) == 0x48, "aligned to a dword"
    assert function.read(spec.STATUS, 2) == spec.STATUS_CAP_LIST
    assert function.read(spec.CAPABILITY_LIST, 1) == 0x40
    assert [function.read(at, 2) for at in (0x40, 0x48)] == [0x4809, 0x0011]
    function.read(0x4C, 4)
    function.write(0x44, 2, 0)
    function.read(0x46, 2)
    assert behind[0].seen == [("read", 0, 2), ("write", 4, 6)] and behind[1].seen == [("read", 0, 2), ("read", 4, 8)]


def test_there_is_room_for_so_many_capabilities():
    function = Card()
    for _ in range(12):
        function.add_capability(9, bytes(14))
    with pytest.raises(ValueError, match="card: no room for another capability"):
        function.add_capability(9, bytes(2))


@pytest.mark.parametrize(("bar", "length"), [(6, 0x1000), (-1, 0x1000), (0, 0x1000), (1, 0x800), (1, 0x3000), (1, 0)])
def test_windows_that_no_bar_can_hold_are_refused(bar, length):
    function = Card(0x1000)
    with pytest.raises(ValueError, match="can be behind BAR"):
        function.add_bar(bar, Window(function.lock, length))


# --- BARs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("enabled", [0, MEMORY])
def test_a_bar_is_sized_by_writing_ones(enabled):
    """PCI 3.0, 6.2.5.1; with decoding on the window is away meanwhile, and is then where it was."""
    function = Card(0x4000, 0x1000).follow()
    function.place(0, 0xE0000000)
    function.write(spec.COMMAND, 2, enabled)
    function.moved()
    for bar, length in enumerate((0x4000, 0x1000)):
        at = spec.BASE_ADDRESS_0 + 4 * bar
        before = function.read(at, 4)
        function.write(at, 4, ONES)
        assert -function.read(at, 4) & ONES == length
        function.write(at, 4, before)
    assert function.read(BAR0, 4) == 0xE0000000
    assert function.moved() == ([(0, 0xE0000000, None), (0, None, 0xE0000000)] if enabled else [])
    for bar in range(2, 6):
        function.write(spec.BASE_ADDRESS_0 + 4 * bar, 4, ONES)
        assert function.read(spec.BASE_ADDRESS_0 + 4 * bar, 4) == 0, "there is none"
    function.write(0x30, 4, ONES)
    assert function.read(0x30, 4) == 0, "no ROM"


def test_a_window_is_where_the_guest_puts_it_while_decoding_is_on():
    """PCI 3.0, 6.2.2, 6.2.5.1"""
    function = Card(0x4000, 0x1000).follow()
    function.place(0, 0xE0000000)
    function.place(1, 0xE0004000)
    assert function.moved() == [] and function.ranges() == {}
    function.enable()
    assert function.moved() == [(0, None, 0xE0000000), (1, None, 0xE0004000)]
    assert function.ranges() == {0: 0xE0000000, 1: 0xE0004000}
    function.place(0, 0xE0010123)
    assert function.moved() == [(0, 0xE0000000, 0xE0010000)], "aligned to its length"
    function.place(0, 0xE0010000)
    function.enable()
    function.write(spec.COMMAND, 2, function.command | spec.COMMAND_INTX_DISABLE)
    assert function.moved() == [], "nothing has changed"
    function.place(0, 0)
    assert function.moved() == [(0, 0xE0010000, None)]
    function.write(spec.COMMAND, 2, 0)
    assert function.moved() == [(1, 0xE0004000, None)] and function.ranges() == {}


def test_a_bar_can_be_written_byte_by_byte():
    function = Card(0x1000).follow()
    function.enable()
    for at, byte in enumerate((0x00, 0x10, 0x02, 0xE0)):
        function.write(BAR0 + at, 1, byte)
    assert function.ranges() == {0: 0xE0021000}
    function.write(BAR0 + 2, 2, 0xE100)
    assert function.moved()[-1] == (0, 0xE0021000, 0xE1001000)


def test_whoever_follows_later_is_told_of_what_is_there():
    function = Card(0x1000, 0x1000)
    function.place(1, 0xE0000000)
    function.enable()
    assert function.follow().moved() == [(1, None, 0xE0000000)]


def test_firmware_notes_the_interrupt():
    function = Card()
    function.set_interrupt_line(17)
    assert function.read(spec.INTERRUPT_LINE, 1) == 17


# --- The host bridge --------------------------------------------------------------------------------------------------


class Ports(Bus):
    """The ports of a machine with a host bridge and two cards, and how a driver gets at configuration space."""

    def __init__(self):
        super().__init__("port", 1 << 16)
        self.bridge = HostBridge()
        self.attach(0xCF8, spec.CONFIG_PORTS, self.bridge)
        self.cards = [Card(0x1000, name=f"card{number}") for number in (1, 2)]
        self.bridge.plug(1, self.cards[0])
        self.bridge.plug(31, self.cards[1])

    def get(self, address, size=4):
        self.write(0xCF8, 4, spec.CONFIG_ENABLE | address & ~3)
        return self.read(0xCFC + address % 4, size)

    def put(self, address, size, value):
        self.write(0xCF8, 4, spec.CONFIG_ENABLE | address & ~3)
        self.write(0xCFC + address % 4, size, value)


ADDRESS_OF_1, ADDRESS_OF_31 = 1 << 11, 31 << 11


@pytest.fixture
def machine():
    return Ports()


def test_the_bridge_is_device_0(machine):
    assert machine.get(0) == 0x12378086 and machine.get(8) >> 16 == 0x0600 and machine.get(0xC) >> 16 & 0xFF == 0


def test_a_kernel_finds_configuration_mechanism_1(machine):
    """As Linux does in pci_check_type1 and pci_sanity_check."""
    machine.write(0xCFB, 1, 1)
    before = machine.read(0xCF8, 4)
    machine.write(0xCF8, 4, 0x80000000)
    assert machine.read(0xCF8, 4) == 0x80000000
    machine.write(0xCF8, 4, before)
    found = [device for device in range(32) if machine.get(device << 11 | 10, 2) == 0x0600]
    assert found == [0]


def test_every_function_is_found_and_nothing_else(machine):
    found = {
        (bus, device, function)
        for bus in (0, 1, 128, 255)
        for device in range(32)
        for function in range(8)
        if machine.get(bus << 16 | device << 11 | function << 8) != ONES
    }
    assert found == {(0, 0, 0), (0, 1, 0), (0, 31, 0)}


def test_data_ports_take_every_width_and_place(machine):
    """PCI 3.0, 3.2.2.3.2: bytes of the dword that the address register names."""
    card = machine.cards[0]
    for offset, size in PLACES:
        assert machine.get(ADDRESS_OF_1 | offset, size) == card.read(offset, size)
    machine.put(ADDRESS_OF_1 | spec.INTERRUPT_LINE, 1, 9)
    machine.put(ADDRESS_OF_1 | BAR0 + 2, 2, 0xE012)
    assert card.read(spec.INTERRUPT_LINE, 1) == 9 and card.read(BAR0, 4) == 0xE0120000
    assert machine.cards[1].read(BAR0, 4) == 0


def test_only_a_dword_is_the_address_register(machine):
    """PCI 3.0, 3.2.2.3.2: other accesses are none of the bridge's, and none of a function's."""
    machine.write(0xCF8, 4, spec.CONFIG_ENABLE | ADDRESS_OF_1 | BAR0)
    for offset, size in [
        (0, 1),
        (0, 2),
        (1, 1),
        (2, 2),
        (3, 1),
        (1, 2),
        (2, 4),
        (1, 4),
        (3, 2),
        (3, 4),
        (0, 8),
        (2, 1),
    ]:
        machine.write(0xCF8 + offset, size, 0)
        assert machine.read(0xCF8 + offset, size) == (1 << 8 * size) - 1, (offset, size)
    assert machine.read(0xCF8, 4) == spec.CONFIG_ENABLE | ADDRESS_OF_1 | BAR0
    assert machine.cards[0].read(BAR0, 4) == 0
    machine.write(0xCF8, 4, ONES)
    assert machine.read(0xCF8, 4) == 0x80FFFFFC


@pytest.mark.parametrize(("port", "size"), [(0xCFD, 4), (0xCFE, 4), (0xCFF, 2), (0xCFF, 4), (0xCFC, 8), (0xCFA, 4)])
def test_an_access_across_the_end_of_the_dword_is_none(machine, port, size):
    machine.write(0xCF8, 4, spec.CONFIG_ENABLE | ADDRESS_OF_1 | BAR0)
    machine.write(port, size, 0)
    assert machine.read(port, size) == (1 << 8 * size) - 1
    machine.write(port, size, ONES)
    assert machine.cards[0].read(BAR0, 4) == 0
    assert machine.get(ADDRESS_OF_1) == 0x10421AF4


def test_nothing_happens_without_the_enable_bit(machine):
    machine.write(0xCF8, 4, ADDRESS_OF_1 | BAR0)
    machine.write(0xCFC, 4, ONES)
    assert machine.read(0xCFC, 4) == ONES and machine.cards[0].read(BAR0, 4) == 0


def test_writes_to_what_is_not_there_vanish(machine):
    before = [bytes(function.space) for function in machine.bridge.functions.values()]
    for address in (2 << 11, ADDRESS_OF_1 | 1 << 8, ADDRESS_OF_1 | 1 << 16, ADDRESS_OF_1 | 128 << 16):
        for offset, size in PLACES:
            machine.put(address | offset, size, ONES & (1 << 8 * size) - 1)
            assert machine.get(address | offset, size) == (1 << 8 * size) - 1
    assert [bytes(function.space) for function in machine.bridge.functions.values()] == before


def test_the_bridge_itself_has_nothing_to_decode(machine):
    for offset, size in PLACES:
        machine.put(offset, size, ONES & (1 << 8 * size) - 1)
    assert machine.bridge.functions[0].ranges() == {}
    assert machine.get(0) == 0x12378086


def test_a_function_is_called_with_its_lock(machine):
    locked = []
    machine.cards[0].on_decode(lambda *move: locked.append(machine.cards[0].lock.locked()))
    machine.put(ADDRESS_OF_1 | BAR0, 4, 0xE0000000)
    machine.put(ADDRESS_OF_1 | spec.COMMAND, 2, MEMORY)
    assert locked == [True]


@pytest.mark.parametrize("device", [0, 1, 31, 32, -1])
def test_a_place_that_is_taken_or_is_none_is_refused(machine, device):
    with pytest.raises(ValueError, match=f"card: no device {device} on the PCI bus"):
        machine.bridge.plug(device, Card())


# --- Windows on the bus -----------------------------------------------------------------------------------------------

START, END = 0xE0000000, 0xE0100000


class Decoded:
    """Two cards whose windows a decoder keeps on a bus, beside something at 0xE00F0000."""

    def __init__(self):
        self.bus = Bus("MMIO", 1 << 52)
        self.moves = []
        self.decoder = Decoder(self.bus, START, END, lambda card, bar, gpa: self.moves.append((card.name, bar, gpa)))
        self.one, self.two = Card(0x4000, 0x1000, name="one"), Card(0x4000, name="two")
        self.bus.attach(0xE00F0000, 0x1000, Window(threading.Lock(), name="something"))
        for card in (self.one, self.two):
            self.decoder.add(card)
            card.enable()

    def moved(self):
        found, self.moves = self.moves, []
        return found

    def there(self):
        return {device.name: base for base, _, device in self.bus.ranges() if device.name != "something"}


@pytest.fixture
def decoded():
    return Decoded()


def test_a_window_answers_where_its_bar_says(decoded):
    decoded.one.place(0, 0xE0004000)
    assert decoded.there() == {"one 0": 0xE0004000} and decoded.moved() == [("one", 0, 0xE0004000)]
    assert decoded.bus.read(0xE0004010, 4) == 0x5A
    decoded.one.place(0, 0xE0008000)
    assert decoded.moved() == [("one", 0, None), ("one", 0, 0xE0008000)]
    assert decoded.bus.read(0xE0004010, 4) == ONES and decoded.bus.read(0xE0008010, 4) == 0x5A
    decoded.one.write(spec.COMMAND, 2, 0)
    assert decoded.there() == {} and decoded.moved() == [("one", 0, None)]


def test_windows_can_change_places(decoded):
    decoded.one.place(0, 0xE0004000)
    decoded.two.place(0, 0xE0008000)
    decoded.moved()
    decoded.one.place(0, 0xE0008000)
    assert decoded.there() == {"two 0": 0xE0008000}, "two has not gone yet"
    decoded.two.place(0, 0xE0004000)
    assert decoded.there() == {"one 0": 0xE0008000, "two 0": 0xE0004000}
    assert decoded.moved() == [
        ("one", 0, None),
        ("two", 0, None),
        ("one", 0, 0xE0008000),
        ("two", 0, 0xE0004000),
    ]


@pytest.mark.parametrize("gpa", [0x1000, 0xC0000000, 0xDFFFC000, END - 0x4000, END, 0xFEE00000])
def test_a_window_outside_of_where_there_may_be_any_is_nowhere(decoded, gpa):
    decoded.one.place(0, gpa)
    assert decoded.there() == ({"one 0": gpa} if START <= gpa < END else {})
    decoded.one.place(0, START)
    assert decoded.there() == {"one 0": START}


def test_a_window_over_something_else_is_nowhere_until_it_fits(decoded):
    gpa = 0xE00F0000
    decoded.one.place(0, gpa)
    assert decoded.there() == {} and decoded.moved() == []
    assert decoded.bus.read(0xE00F0000, 1) == 0x5A
    decoded.bus.detach(0xE00F0000)
    decoded.two.place(0, START)
    assert decoded.there() == {"one 0": gpa, "two 0": START}


def test_windows_of_one_function_may_not_overlap_either(decoded):
    decoded.one.place(0, START)
    decoded.one.place(1, START + 0x1000)
    assert decoded.there() == {"one 0": START}
    decoded.one.write(spec.COMMAND, 2, 0)
    assert decoded.there() == {}
    decoded.one.place(1, START + 0x4000)
    decoded.one.enable()
    assert decoded.there() == {"one 0": START, "one 1": START + 0x4000}


def test_sizing_with_decoding_on_leaves_everything_as_it_was(decoded):
    decoded.one.place(0, START)
    decoded.two.place(0, START + 0x4000)
    for at in (BAR0, BAR1):
        before = decoded.one.read(at, 4)
        decoded.one.write(at, 4, ONES)
        decoded.one.read(at, 4)
        decoded.one.write(at, 4, before)
    assert decoded.there() == {"one 0": START, "two 0": START + 0x4000}


def test_writes_of_every_width_and_place_leave_the_bus_sound(decoded):
    """Whatever comes of it, a good driver gets its windows afterwards."""
    for value in (ONES, 0xE000_0000, 0xE00F_0000, 0, 0x0700_0007, START | 7):
        for offset, size in PLACES:
            decoded.one.write(offset, size, value >> 8 * (offset % 4) & (1 << 8 * size) - 1)
    for card in (decoded.one, decoded.two):
        card.write(spec.COMMAND, 2, 0)
    assert decoded.there() == {}
    decoded.one.place(0, START)
    decoded.one.place(1, START + 0x4000)
    decoded.two.place(0, START + 0x8000)
    decoded.one.enable()
    decoded.two.enable()
    assert decoded.there() == {"one 0": START, "one 1": START + 0x4000, "two 0": START + 0x8000}
