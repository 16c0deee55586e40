"""Makes cases for one kind of device and runs them: new ones, and changed ones of those that reached something new."""

from __future__ import annotations

from random import Random

from tests.fuzz.cases import RECORD, Case, decode
from tests.fuzz.harness import Harness
from tests.fuzz.seeds import seeds

LONGEST = 40
"""Records of a case."""
CORPUS = 500
"""Cases kept at most."""


class Fuzzer:
    """Fuzzes `subject`'s kind of device; what it does follows from `seed` and how often it is asked.

    failures   those found, one of each key, as short as can be
    """

    def __init__(self, subject, seed, lines=None, **settings):
        self.harness = Harness(subject, lines, **settings)
        self.kinds = self.harness.kinds
        self.lines = lines
        self.cases = 0
        self.failures = {}
        self._subject = subject
        self._random = Random(f"{seed} {subject.name}")
        self._seeds = seeds(subject)
        self._corpus: list[bytes] = []
        self._known: set[str] = set()

    def run(self, more):
        """Run cases as long as more() is true."""
        with self.harness:
            while more():
                self.one()

    def one(self):
        """Make and run one case; the seeds come first."""
        data = b"" if self._seeds else self._make()
        case = self._seeds.pop(0) if self._seeds else decode(self._subject, data)
        before = self.kinds.counts.copy()
        failure = self.harness.run(case)
        self.cases += 1
        if failure is not None:
            self._failed(failure)
            return
        fresh = self.lines is not None and self.lines.fresh
        if fresh:
            self.lines.fresh = False
        reached = {name for name, count in self.kinds.counts.items() if count != before[name]}
        # Two kinds of error in one case are more than each by itself.
        reached |= {f"{one} & {other}" for one in reached for other in reached if one < other}
        if fresh or not reached <= self._known:
            self._known |= reached
            if not data:
                return
            if len(self._corpus) == CORPUS:
                del self._corpus[self._random.randrange(CORPUS)]
            self._corpus.append(data)

    def _failed(self, failure):
        if failure.key not in self.failures:
            self.failures[failure.key] = failure  # before it is made shorter, which may be interrupted
            self.failures[failure.key] = self.harness.minimise(failure)

    # --- Making cases -------------------------------------------------------------------------------------------------

    def _make(self):
        random = self._random
        if not self._corpus or random.random() < 0.5:
            return b"".join(self._record() for _ in range(random.randint(2, LONGEST)))
        records = self._split(random.choice(self._corpus))
        for _ in range(random.randint(1, 4)):
            self._change(records)
        return b"".join(records[:LONGEST])

    def _record(self):
        """Random bytes; in some, most are zero, so that what the others ask for stands alone."""
        record = self._random.randbytes(RECORD)
        if self._random.random() < 0.4:
            keep = self._random.randint(1, RECORD)
            record = record[:keep] + bytes(RECORD - keep)
        return record

    def _split(self, data):
        return [data[at : at + RECORD] for at in range(0, len(data), RECORD)]

    def _change(self, records):
        random, at = self._random, self._random.randrange(len(records))
        how = random.randrange(6)
        if how == 0:
            records[at] = self._record()
        elif how == 1:
            records.insert(at + 1, self._record())
        elif how == 2 and at:
            del records[at]
        elif how == 3 and at:
            records.insert(random.randrange(at, len(records)), records[at])
        elif how == 4:
            other = self._split(random.choice(self._corpus))
            records[at + 1 :] = other[random.randrange(len(other)) :]
        else:
            record = bytearray(records[at])
            for _ in range(random.randint(1, 3)):
                record[random.randrange(RECORD)] = random.choice((0, 255, random.randrange(256)))
            records[at] = bytes(record)


def replay(subject, text, **settings):
    """Run the case that a file says; a Failure, or None."""
    with Harness(subject, **settings) as harness:
        return harness.run(Case.parse(text))
