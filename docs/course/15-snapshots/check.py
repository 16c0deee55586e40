"""Judges the exercises of lesson 15; `move` needs KVM."""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path


class Guest:
    """So many pages, of which it writes to some whenever it is looked at, until it is paused."""

    def __init__(self, pages, writes, seed=15):
        self.pages = pages
        self.memory = [0] * pages
        self.paused = False
        self.reads = self.looks = 0
        self._writes = writes
        self._dirty = set()
        self._random = random.Random(seed)

    def run(self):
        if not self.paused:
            for _ in range(self._writes):
                page = self._random.randrange(self.pages)
                self.memory[page] += 1
                self._dirty.add(page)

    def read(self, page):
        if not 0 <= page < self.pages:
            raise IndexError(f"guest.read({page}): it has pages 0 to {self.pages - 1}")
        content = self.memory[page]
        self.reads += 1
        if self.reads % 8 == 0:
            self.run()
        return content

    def dirty(self):
        self.looks += 1
        found, self._dirty = self._dirty, set()
        self.run()  # it does not wait until you have read the answer
        return found

    def pause(self):
        self.run()
        self.paused = True


def trial(work, pages, writes, limit, rounds):
    """(the guest, what was received, (page, paused) of each page sent, what precopy() returns)."""
    guest, received, sent = Guest(pages, writes), [None] * pages, []

    def send(page, data):
        received[page] = data
        sent.append((page, guest.paused))
        if len(sent) > 100 * pages:
            raise AssertionError("it does not come to an end: a hundred times the guest's memory has been sent")

    return guest, received, sent, work.exercise.precopy(guest, send, limit, rounds)


def check_precopy(work):
    for pages, writes, limit, rounds in ((64, 0, 4, 5), (256, 1, 8, 10), (256, 6, 8, 6), (64, 40, 2, 3)):
        what = f"with {pages} pages, limit {limit} and {rounds} rounds"
        try:
            guest, received, sent, returned = trial(work, pages, writes, limit, rounds)
        except AssertionError as error:
            return f"{what}: {error}"
        if not sent:
            return "nothing is sent"
        if not guest.paused:
            return f"{what}: the guest is never paused"
        running, still = [page for page, paused in sent if not paused], [page for page, paused in sent if paused]
        if set(running[:pages]) != set(range(pages)):
            return f"{what}: the first round sends every page once, while the guest runs"
        stale = [page for page in range(pages) if received[page] != guest.memory[page]]
        if stale:
            return f"{what}: {len(stale)} pages are older at the receiver than in the guest: {stale[:5]}"
        if len(set(still)) != len(still):
            return f"{what}: a page is sent twice while the guest stands still"
        if returned != len(still):
            return f"{what}: {len(still)} pages were sent after the pause, precopy() returns {returned}"
        if writes and len(still) == pages and pages == 256:
            return f"{what}: all pages are sent after the pause: then it need not have run meanwhile"
        if not writes and guest.looks > 2:
            return f"{what}: the guest writes nothing, so after the first round it could be paused: you go on looking"
        if guest.looks > rounds + 1:
            return f"{what}: guest.dirty() is asked {guest.looks} times, in more than {rounds} rounds"
    _, _, sent, _ = trial(work, 256, 1, 8, 10)
    if sum(1 for _, paused in sent if paused) > 16:
        return "a guest that writes slowly is paused with many pages left: go on with rounds down to the limit"
    return ""


GIVE = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import exercise
from pyvmm import VM
from pyvmm.images import guest
with VM(guest("lesson15-counter").path(), mem="1M", timeout=30) as vm:
    while vm.memory.read_u32(0x600) < 20000:
        time.sleep(0.001)
    before = vm.memory.read_u32(0x600)
    exercise.give(vm, sys.argv[2])
    counts = [vm.memory.read_u32(0x600)]
    time.sleep(0.05)
    counts.append(vm.memory.read_u32(0x600))
    print(json.dumps({"before": before, "counts": counts, "state": vm.state}))
"""
TAKE = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import exercise
vm = exercise.take(sys.argv[2])
if vm is None:
    print("null")
else:
    counts = []
    try:
        state = vm.state
        if state != "made":
            counts = [vm.memory.read_u32(0x600)]
            end = time.monotonic() + 10
            while vm.memory.read_u32(0x600) == counts[0] and time.monotonic() < end:
                time.sleep(0.001)
            counts.append(vm.memory.read_u32(0x600))
    finally:
        vm.close()
    print(json.dumps({"counts": counts, "state": state}))
"""


def process(program, *arguments):
    """What a process of its own prints, as JSON; a text if it fails."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}"
    return json.loads(done.stdout.splitlines()[-1])


def check_move(work):
    if not work.live:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        path, own = str(Path(folder, "moving")), str(Path(work.exercise.__file__).parent)
        given = process(GIVE, own, path)
        if isinstance(given, str):
            return f"give() in the first process: {given}"
        if not Path(path).exists():
            return "give() has left nothing in the folder"
        if given["counts"][0] != given["counts"][1]:
            return "after give() the guest still counts in the first process: soon it would run twice"
        if given["state"] != "ended":
            return f"after give() the VM is {given['state']}: a resume() would let it run a second time"
        for file in Path(path).glob("memory-*"):
            if int.from_bytes(file.read_bytes()[0x600:0x604], "little") != given["counts"][0]:
                return "after it was saved the guest ran on, and then ended: it does not go on where it was, but before"
        taken = process(TAKE, own, path)
        if isinstance(taken, str):
            return f"take() in the second process: {taken}"
        if taken is None:
            return "take() returns no VM"
        if taken["state"] != "running":
            return f"take() returns a VM that is {taken['state']}, not running"
    if taken["counts"][0] < given["counts"][0]:
        return f"it was given away at {given['counts'][0]} and begins at {taken['counts'][0]}: it has begun anew"
    if taken["counts"][0] == taken["counts"][1]:
        return "in the second process it does not go on"
    return ""
