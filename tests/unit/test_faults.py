"""Faults on purpose: how rules are written, which requests they hit, and what then happens to a completion."""

from __future__ import annotations

import threading
import time

import pytest

from pyvmm.errors import UsageError
from pyvmm.virtio import spec
from pyvmm.virtio.device import VirtioDevice
from pyvmm.virtio.faults import OVERTAKE_WAIT, FaultPlan, Rule, parse_rule
from pyvmm.virtio.plane import DataPlane
from tests.support.virtiodriver import Driver

NO_EVENT_IDX = [spec.F_RING_EVENT_IDX]


class Store(VirtioDevice):
    """Answers each request with its own bytes. With `draws`, "r" and "w" are reads and writes of the sector behind."""

    device_id = spec.ID_RNG
    queue_sizes = (16, 16)

    def __init__(self, *rules, seed=0, draws=True, name="store0"):
        super().__init__(name)
        self.faults = FaultPlan(rules, seed)
        self.draws = draws
        self.met = []

    def serve(self, queue):
        for chain in queue.chains():
            text = chain.read(0, chain.readable_length)
            if self.draws:
                op = {b"r": "read", b"w": "write"}.get(text[:1])
                sector = int(text[1:]) if text[1:].isdigit() else None
                fault = self.faults.draw(self.name, queue.index, op, sector, 512)
                self.met.append(fault and (fault.kind, fault.number))
                if fault is not None:
                    text = b"bad" if fault.kind == "error" else text[: fault.amount]
            self.complete(queue, chain, chain.write(text))


def made(*rules, size=16, without=(), **settings):
    return Driver(Store(*rules, **settings)).bring_up(size=size, without=without)


def requests(driver, count, queue=0):
    """`count` requests, each notified by itself; returns the heads in the order of completion."""
    sent = [driver.send(queue, [b"x"], [4]) for _ in range(count)]
    return sent, [head for head, _ in driver.rings[queue].used()]


def pass_time(driver, seconds):
    """As the data plane does when its deadline has come."""
    device = driver.device
    with device.plane:
        device.guarded(lambda: device.run_due(time.monotonic() + seconds))


def works(driver):
    """A request is answered, now or when what holds it is over."""
    head = driver.send(0, [b"good"], [4])
    pass_time(driver, 10)
    assert (head, 4) in driver.rings[0].used() and driver.rings[0].written(head) == b"good"


# --- Rules as text ---------------------------------------------------------------------------------------------------


def test_a_rule_is_read_from_text():
    rule = parse_rule("blk0:error,op=write,sector=100-200,rate=0.1,times=3,queue=2")
    assert (rule.device, rule.kind, rule.op, rule.sectors) == ("blk0", "error", "write", (100, 200))
    assert (rule.rate, rule.times, rule.queue, rule.amount) == (0.1, 3, 2, None)
    rule = parse_rule("*:reorder=4,from=10,to=20,every=2")
    assert (rule.device, rule.amount, rule.first, rule.last, rule.every) == ("*", 4, 10, 20, 2)
    assert parse_rule("a:lost,nth=7,sector=5").nth == 7 and parse_rule("a:lost,sector=5").sectors == (5, 5)


@pytest.mark.parametrize(
    ("text", "seconds"), [("a:delay", 0.01), ("a:delay=5ms", 0.005), ("a:delay=2s", 2), ("a:delay=0.5", 0.5)]
)
def test_a_delay_is_a_time(text, seconds):
    assert parse_rule(text).amount == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected DEVICE:KIND"),
        ("blk0", "expected DEVICE:KIND"),
        (":error", "expected DEVICE:KIND"),
        ("blk0:", "expected DEVICE:KIND"),
        ("blk0:explode", "unknown kind of fault 'explode' (expected error, short, delay"),
        ("blk0:error=3", "error takes no value"),
        ("blk0:error,color=red", "unknown sub-option 'color=red' (expected op, queue, sector"),
        ("blk0:error,rate", "unknown sub-option 'rate'"),
        ("blk0:error,rate=2", "rate=2.0 (expected more than 0, and 1 at most)"),
        ("blk0:error,rate=0", "rate=0.0"),
        ("blk0:error,rate=nan", "'nan' is not a number"),
        ("blk0:error,rate=.", "'.' is not a number"),
        ("blk0:error,rate=-1", "'-1' is not a number"),
        ("blk0:error,sector=9-3", "sectors (9, 3) are empty"),
        ("blk0:error,sector=a-b", "'a' is not a number"),
        ("blk0:error,sector=1-", "'' is not a number"),
        ("blk0:error,nth=0", "nth=0 (expected 1 or more)"),
        ("blk0:error,nth=" + "9" * 5000, "is not a number"),
        ("blk0:error,nth=٣", "is not a number"),
        ("blk0:error,nth=3,every=2", "nth is one request"),
        ("blk0:error,from=9,to=3", "from 9 to 3 is empty"),
        ("blk0:error,every=0", "every=0"),
        ("blk0:error,times=0", "times=0"),
        ("blk0:error,op=", "op= needs"),
        ("blk0:error,op=read,op=write", "op is given twice"),
        ("blk0:delay=0", "a delay of 0.0 s"),
        ("blk0:delay=2h", "'2h' is not a number"),
        ("blk0:delay=9999999s", "a delay of 9999999.0 s (expected up to 3600 s)"),
        ("blk0:repeat=0", "repeat=0 (expected 1 to 100)"),
        ("blk0:reorder=99999", "reorder=99999 (expected 1 to 32768)"),
        ("blk0:short=x", "'x' is not a number"),
    ],
)
def test_a_bad_rule_is_named_with_what_is_wrong(text, problem):
    with pytest.raises(UsageError) as caught:
        parse_rule(text)
    assert f"fault {text!r}: " in str(caught.value) and problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_rule_made_in_python_says_how_it_would_be_written():
    rule = Rule("blk0", "delay", amount=0.5, op="write", sectors=(1, 2), rate=0.25)
    assert rule.text == "blk0:delay=0.5,op=write,sector=1-2,rate=0.25"
    assert parse_rule(rule.text).sectors == (1, 2)
    with pytest.raises(UsageError, match="fault 'blk0:error,nth=-1': nth=-1"):
        Rule("blk0", "error", nth=-1)


def test_a_rule_about_a_device_that_is_not_there_is_refused():
    plan = FaultPlan(["*:delay", "blk0:error", "blk7:error"])
    plan.check(["blk0", "blk7"])
    with pytest.raises(UsageError, match=r"fault 'blk7:error': no device 'blk7' \(there are: blk0, rng0\)"):
        plan.check(["blk0", "rng0"])


# --- Which requests --------------------------------------------------------------------------------------------------


def hit(rule, asked, device="d", queue=0, seed=0):
    """The numbers, from 1, of those of `asked` (op, sector, length) that `rule` hits."""
    plan = FaultPlan([rule], seed)
    return [at for at, (op, sector, length) in enumerate(asked, 1) if plan.draw(device, queue, op, sector, length)]


READS = [("read", at, 512) for at in range(12)]


def test_requests_are_chosen_by_number():
    assert hit("d:error,nth=3", READS) == [3]
    assert hit("d:error,from=3,to=5", READS) == [3, 4, 5]
    assert hit("d:error,every=4", READS) == [1, 5, 9]
    assert hit("d:error,from=2,every=4,times=2", READS) == [2, 6]
    assert hit("d:error,from=11", READS) == [11, 12]


def test_numbers_count_what_op_and_sectors_let_through():
    mixed = [("read", 1, 512), ("write", 1, 512), ("flush", None, 0), ("write", 2, 512)]
    assert hit("d:error,op=write,nth=2", mixed) == [4]
    assert hit("d:error,op=flush", mixed) == [3]
    assert hit("d:error,sector=2", mixed) == [4]


def test_a_request_that_touches_a_sector_is_hit():
    asked = [("read", 90, 10 * 512), ("read", 91, 10 * 512), ("read", 200, 1), ("read", 201, 512), ("read", 100, 0)]
    assert hit("d:error,sector=100-200", asked) == [2, 3, 5]


def test_other_devices_and_queues_are_left_alone():
    assert hit("e:error", READS) == [] and hit("*:error", READS[:1]) == [1]
    assert hit("d:error,queue=1", READS) == [] and hit("d:error,queue=1", READS[:1], queue=1) == [1]


def test_a_rate_is_kept():
    asked = READS * 1000
    for rate in (0.01, 0.1, 0.5, 0.9):
        share = len(hit(f"d:error,rate={rate}", asked)) / len(asked)
        assert abs(share - rate) < 0.02, rate


def test_the_same_seed_draws_the_same_and_another_one_does_not():
    asked = READS * 20
    rule = "d:error,rate=0.3"
    assert hit(rule, asked) == hit(rule, asked)
    different = [
        hit(rule, asked),
        hit(rule, asked, seed=1),
        hit("*:error,rate=0.3", asked, "e"),
        hit(rule, asked, queue=1),
    ]
    assert len({tuple(numbers) for numbers in different}) == 4


def test_what_is_drawn_does_not_depend_on_the_order_of_devices_and_queues():
    places = [(device, queue) for device in ("blk0", "net0") for queue in (0, 1)]

    def drawn(order):
        plan = FaultPlan(["*:error,rate=0.3", "*:short,rate=0.3,times=5"], 7)
        found = {place: [] for place in places}
        for place in order:
            fault = plan.draw(*place, "read", 0, 4096)
            found[place].append(fault and (fault.kind, fault.amount, fault.number))
        return found

    assert drawn(places * 50) == drawn([place for place in places[::-1] for _ in range(50)])


def test_the_lots_are_the_same_on_every_machine_and_release():
    """A seed in a bug report must go on meaning the same."""
    assert hit("d:error,rate=0.2", READS, seed=42) == [3, 4, 5]


# --- Faults that devices make ----------------------------------------------------------------------------------------


def test_an_error_and_a_short_transfer_reach_the_device_model():
    driver = made("store0:error,nth=2", "store0:short=3,nth=3")
    answers = [driver.request(0, [b"hello"], [8])[1][:5] for _ in range(4)]
    assert answers == [b"hello", b"bad\xa5\xa5", b"hel\xa5\xa5", b"hello"]
    assert driver.device.met == [None, ("error", 2), ("short", 3), None]
    assert driver.device.faults.describe() == [
        "store0:error,nth=2: 1 of 4 requests",
        "store0:short=3,nth=3: 1 of 4 requests",
    ]
    driver.close()


def test_a_short_transfer_is_shorter_than_what_was_asked_for():
    plan = FaultPlan(["d:short"])
    amounts = [plan.draw("d", 0, "read", 0, 8).amount for _ in range(100)]
    assert set(amounts) == set(range(8))
    assert FaultPlan(["d:short=9999"]).draw("d", 0, "read", 0, 512).amount == 511
    assert plan.draw("d", 0, "flush", None, 0) is None, "of nothing, no part is missing"


def test_of_error_and_short_the_first_rule_counts():
    plan = FaultPlan(["d:short,nth=1", "d:error"])
    assert [plan.draw("d", 0, "read", 0, 512).kind for _ in range(2)] == ["short", "error"]
    assert [hits for _, hits, _ in plan.counts] == [1, 1]


def test_a_device_that_draws_nothing_has_no_errors():
    driver = made("*:error", "*:short", draws=False)
    assert driver.request(0, [b"good"], [4]) == (4, b"good")
    assert [rule[1:] for rule in driver.device.faults.counts] == [(0, 0), (0, 0)]
    driver.close()


# --- Late and out of order -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", [True, False])
def test_a_delayed_completion_comes_late_and_the_others_do_not_wait(draws):
    driver = made("store0:delay=1s,nth=1", draws=draws, without=NO_EVENT_IDX)
    device = driver.device
    began = time.monotonic()
    sent, used = requests(driver, 3)
    assert used == sent[1:]
    assert began + 1 <= device.next_deadline() <= time.monotonic() + 1
    pass_time(driver, 0.5)
    assert driver.rings[0].used() == []
    interrupts = driver.interrupts
    pass_time(driver, 1.1)
    assert driver.rings[0].used() == [(sent[0], 1)] and driver.interrupts == interrupts + 1
    assert device.next_deadline() is None
    works(driver)
    driver.close()


def test_delays_end_in_the_order_of_their_time():
    driver = made("store0:delay=2s,nth=1", "store0:delay=1s,from=2,to=3")
    sent, used = requests(driver, 3)
    assert used == []
    pass_time(driver, 5)
    assert [head for head, _ in driver.rings[0].used()] == [sent[1], sent[2], sent[0]]
    driver.close()


def test_no_more_is_held_than_the_queue_has():
    driver = made("*:delay=1s")  # 16 descriptors, two each
    sent, used = requests(driver, 8)
    assert used == [] and driver.device.queues[0].in_flight == 8
    assert len(driver.device.faults._held["store0"]) == 8
    driver.rings[0].make_available(sent[0])  # again, while it is in flight
    driver.kick()
    assert driver.needs_reset
    driver.bring_up()
    works(driver)
    driver.close()


def test_what_is_held_lets_go_of_guest_memory():
    driver = made("*:delay=1s")
    requests(driver, 3)
    for queue in driver.device.queues:
        queue.disable()
    driver.memory.close()  # BufferError if a view of it were left


@pytest.mark.parametrize("kind", ["delay=1s", "reorder", "repeat=50"])
def test_nothing_that_is_held_lands_after_a_reset(kind):
    """virtio 1.3, 2.4: a device must not use buffers, nor interrupt, after a reset."""
    driver = made(f"store0:{kind},nth=1")
    requests(driver, 1)
    driver.rings[0].used()
    driver.put("Status", 0)
    interrupts, used = driver.interrupts, driver.rings[0].used_index
    assert driver.device.next_deadline() is None
    pass_time(driver, 10)
    assert (driver.interrupts, driver.rings[0].used_index) == (interrupts, used)
    driver.bring_up()
    pass_time(driver, 10)
    assert driver.rings[0].used_index == 0
    works(driver)
    driver.close()


def test_a_reset_forgets_what_was_missed_and_who_was_overtaken():
    driver = made("store0:lost,nth=1", "store0:reorder,from=2", without=NO_EVENT_IDX)
    requests(driver, 2)
    driver.bring_up(without=NO_EVENT_IDX)
    driver.rings[0].set_flags(spec.AVAIL_F_NO_INTERRUPT)
    sent, used = requests(driver, 2)
    assert used == sent[::-1] and driver.interrupts == 0
    driver.close()


def test_numbers_go_on_after_a_reset():
    driver = made("store0:error,nth=3")
    for _ in range(2):
        driver.request(0, [b"x"], [4])
    driver.bring_up()
    assert driver.request(0, [b"x"], [4])[1] == b"bad\xa5"
    driver.close()


@pytest.mark.transport("mmio")  # the only one with a way to do that
def test_a_queue_that_was_taken_out_of_use_gets_nothing():
    driver = made("store0:delay=1s,nth=1", "store0:repeat=9,nth=2")
    requests(driver, 2)
    driver.put("QueueSel", 0)
    driver.put("QueueReady", 0)
    interrupts, used = driver.interrupts, driver.rings[0].used_index
    pass_time(driver, 10)
    assert (driver.interrupts, driver.rings[0].used_index) == (interrupts, used)
    assert driver.device.next_deadline() is None
    driver.close()


@pytest.mark.parametrize("depth", [1, 3])
def test_a_reordered_request_is_overtaken_by_so_many(depth):
    driver = made(f"store0:reorder={depth},nth=2")
    sent, used = requests(driver, 7)
    expected = list(sent)
    expected.insert(1 + depth, expected.pop(1))
    assert used == expected
    assert driver.device.next_deadline() is None
    driver.close()


def test_with_every_request_reordered_neighbours_change_places():
    driver = made("store0:reorder")
    sent, used = requests(driver, 6)
    assert used == [sent[1], sent[0], sent[3], sent[2], sent[5], sent[4]]
    assert driver.device.faults.counts[0][1] == 3, "those that overtake are not hit"
    driver.close()


def test_a_request_that_nothing_overtakes_completes_all_the_same():
    driver = made("store0:reorder=4")
    head = driver.send(0, [b"x"], [4])
    assert driver.rings[0].used() == []
    pass_time(driver, OVERTAKE_WAIT + 0.01)
    assert driver.rings[0].used() == [(head, 1)]
    works(driver)
    driver.close()


def test_the_end_of_a_delay_overtakes_too():
    driver = made("store0:delay=10ms,nth=1", "store0:reorder,nth=2")
    sent, used = requests(driver, 2)
    assert used == []
    pass_time(driver, 10)
    assert sorted(head for head, _ in driver.rings[0].used()) == sorted(sent)
    works(driver)
    driver.close()


def test_queues_are_held_independently():
    driver = made("store0:delay=1s,queue=1")
    requests(driver, 1, queue=1)
    sent, used = requests(driver, 1, queue=0)
    assert used == sent
    pass_time(driver, 2)
    assert len(driver.rings[1].used()) == 1
    driver.close()


# --- Interrupts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("without", [(), NO_EVENT_IDX])
def test_a_lost_interrupt_is_not_even_pending_and_the_next_one_comes(without):
    driver = made("store0:lost,nth=1", without=without)
    driver.send(0, [b"x"], [4])
    assert driver.interrupts == 0 and driver.get("InterruptStatus") == 0
    assert driver.rings[0].used_index == 1, "the buffer was used, only nobody was told"
    driver.transport.remind()
    assert driver.interrupts == 0
    driver.send(0, [b"x"], [4])  # and the driver, which was not told, has not moved its used event either
    assert driver.interrupts == 1 and driver.acknowledge() == spec.INTERRUPT_USED_BUFFER
    assert len(driver.rings[0].used()) == 2
    driver.rings[0].set_flags(spec.AVAIL_F_NO_INTERRUPT)
    driver.send(0, [b"x"], [4])
    assert driver.interrupts == 1, "what was missed is made up for once"
    driver.close()


def test_only_the_interrupt_of_that_completion_is_lost():
    driver = made("store0:lost,nth=2", without=NO_EVENT_IDX)
    for _ in range(3):
        driver.rings[0].add(driver.heap, [b"x"], [4])
    driver.kick()
    assert driver.interrupts == 2, "one for the first, and one for the batch's end"
    driver.acknowledge()
    driver.send(0, [b"x"], [4])
    assert driver.interrupts == 3
    driver.close()


def test_an_interrupt_that_the_driver_does_not_want_cannot_be_lost():
    driver = made("store0:lost,times=1", without=NO_EVENT_IDX)
    driver.rings[0].set_flags(spec.AVAIL_F_NO_INTERRUPT)
    requests(driver, 3)
    assert driver.device.faults.counts[0][1] == 0
    driver.rings[0].set_flags(0)
    requests(driver, 1)
    assert driver.device.faults.counts[0][1] == 1 and driver.interrupts == 0
    requests(driver, 1)
    assert driver.interrupts == 1
    driver.close()


def test_a_repeated_interrupt_comes_again_after_it_was_acknowledged():
    driver = made("store0:repeat=2,nth=1", without=NO_EVENT_IDX)
    requests(driver, 1)
    assert driver.interrupts == 1 and driver.acknowledge() == spec.INTERRUPT_USED_BUFFER
    for number in (2, 3):
        pass_time(driver, 0.5 * number)
        assert driver.interrupts == number and driver.acknowledge() == spec.INTERRUPT_USED_BUFFER
        pass_time(driver, 0.5 * number)
        assert driver.interrupts == number, "not twice at once"
    assert driver.device.next_deadline() is None
    works(driver)
    driver.close()


def test_repeats_do_not_pile_up():
    driver = made("store0:repeat=100", without=NO_EVENT_IDX)
    for _ in range(50):
        requests(driver, 4)
    assert len(driver.device.faults._held["store0"]) == 1
    driver.close()


def test_a_delayed_completion_can_lose_its_interrupt():
    driver = made("store0:delay=10ms", "store0:lost,nth=1", without=NO_EVENT_IDX)
    driver.send(0, [b"x"], [4])
    pass_time(driver, 1)
    assert driver.rings[0].used_index == 1 and driver.interrupts == 0
    driver.close()


# --- With a data plane -----------------------------------------------------------------------------------------------


def test_a_data_plane_lets_go_in_time():
    driver = Driver(Store("store0:delay=30ms,nth=1", "store0:reorder,nth=2"))
    plane = DataPlane(driver.device, driver.transport)
    told = threading.Event()
    driver.on_interrupt = told.set
    plane.start()
    driver.bring_up(without=NO_EVENT_IDX)
    began = time.monotonic()
    driver.send(0, [b"x"], [4])
    driver.send(0, [b"y"], [4])
    ring = driver.rings[0]
    while ring.used_index < 2:
        assert time.monotonic() - began < 10
        time.sleep(0.001)
    assert time.monotonic() - began >= 0.03
    assert told.wait(10)
    plane.close()
    driver.close()


def test_nothing_goes_wrong_under_every_fault_at_once():
    """However rules combine, each request completes once, and nothing is held when all is over."""
    for seed in range(20):
        driver = made(
            "*:delay=1ms,rate=0.3",
            "*:reorder=3,rate=0.3",
            "*:lost,rate=0.3",
            "*:repeat=3,rate=0.3",
            "*:error,rate=0.2",
            "*:short,rate=0.2",
            seed=seed,
            without=NO_EVENT_IDX,
        )
        ring, sent, seen = driver.rings[0], 0, 0
        while sent < 300:
            while len(ring.free) >= 2 and sent < 300:
                driver.send(0, [b"hello"], [5])
                sent += 1
            seen += len(ring.used())
            pass_time(driver, 0.002)
            driver.acknowledge()
        for number in range(10):
            pass_time(driver, 10 + number)
        seen += len(ring.used())
        assert seen == sent and driver.device.queues[0].in_flight == 0
        assert driver.device.next_deadline() is None
        assert all(hits for _, hits, _ in driver.device.faults.counts), driver.device.faults.describe()
        driver.close()
