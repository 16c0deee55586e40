"""`python -m tests.fuzz`: fuzz the virtio devices, print what was reached, exit 1 if something was wrong or missed."""

from __future__ import annotations

import argparse
import faulthandler
import sys
import time
from hashlib import blake2b
from pathlib import Path

from tests.fuzz.cases import Case
from tests.fuzz.fuzzer import Fuzzer, replay
from tests.fuzz.lines import Lines
from tests.fuzz.subjects import SUBJECTS

CASES = 1500
"""Cases of each kind of device, unless told otherwise: every kind of error is reached by then."""
SLICE = 5.0
"""Seconds that one kind of device has before the next, when the time is what is given."""
FOLDER = Path("build/fuzz")


def main(argv=None):
    options = arguments().parse_args(argv)
    if options.replay is not None:
        return replayed(options.replay)
    subjects = [SUBJECTS[options.device]] if options.device else SUBJECTS.values()
    fuzzers = [Fuzzer(subject, options.seed, Lines(subject.modules)) for subject in subjects]
    try:
        if options.seconds is None:
            for fuzzer in fuzzers:
                end = options.cases
                fuzzer.run(lambda fuzzer=fuzzer, end=end: fuzzer.cases < end)
        else:
            take_turns(fuzzers, time.monotonic() + options.seconds)
    except KeyboardInterrupt:
        print()
    return max([report(fuzzer) for fuzzer in fuzzers if fuzzer.cases], default=0)


def arguments():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__, allow_abbrev=False)
    parser.add_argument("--device", choices=SUBJECTS, help="one kind of device instead of all")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--cases", type=int, default=CASES, help=f"cases of each kind of device ({CASES})")
    length.add_argument("--seconds", type=float, help="time for all of them, `inf`: until Ctrl-C")
    parser.add_argument("--seed", default="1", help="another seed is another lot of cases (1)")
    parser.add_argument("--replay", metavar="FILE", help="run one case that was saved")
    return parser


def take_turns(fuzzers, end):
    while time.monotonic() < end:
        for fuzzer in fuzzers:
            turn = min(end, time.monotonic() + SLICE)
            fuzzer.run(lambda turn=turn: time.monotonic() < turn)


def replayed(path):
    text = Path(path).read_text()
    failure = replay(SUBJECTS[Case.parse(text).device], text)
    print("nothing is wrong" if failure is None else failure.text)
    return int(failure is not None)


def report(fuzzer):
    """Print what `fuzzer` reached and found; the exit status."""
    name = fuzzer.harness.subject.name
    print(f"{name}: {fuzzer.cases:,d} cases")
    print("\n".join(fuzzer.kinds.table()))
    if fuzzer.lines is not None and (lines := fuzzer.lines.missing()):
        print("lines never run:", *lines, sep="\n          ")
    missing = fuzzer.kinds.missing()
    for kind in missing:
        print(f"NEVER REACHED: {kind}")
    for failure in fuzzer.failures.values():
        text = failure.case.text(failure.text)
        path = FOLDER / f"{name}-{blake2b(text.encode(), digest_size=4).hexdigest()}.case"
        FOLDER.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"FAILED: {failure.text.rstrip()}\n  python -m tests.fuzz --replay {path}")
    return int(bool(missing or fuzzer.failures))


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
