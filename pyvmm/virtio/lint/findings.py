"""Where the findings of a driver lint are kept: each once, with a count.

Imports rules. Any thread; bounded, whatever the guest does.
"""

from __future__ import annotations

from threading import Lock

from pyvmm.virtio.lint.rules import RULES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyvmm.virtio.lint.rules import Rule

LIMIT = 500
"""Findings that are kept. There are hardly more than a hundred rules: it takes many devices and an odd driver."""


class Finding:
    """Something that a driver did and should not have done.

    rule        what it is: identifier, level, section, words
    device      the device's name, as "blk0"
    queue       the queue's number, or None
    descriptor  the descriptor's number, or None
    register    the register's name, or the configuration field's, or ""
    detail      what exactly, or ""
    vcpu, rip   which vCPU and instruction it was; None where a data plane found it later
    count       how often, for this rule, device and queue; the rest is of the first time
    """

    __slots__ = ("count", "descriptor", "detail", "device", "queue", "register", "rip", "rule", "vcpu")

    def __init__(
        self,
        rule: Rule,
        device: str,
        queue: int | None,
        descriptor: int | None,
        register: str,
        detail: str,
        where: tuple[int, int] | None,
    ) -> None:
        self.rule = rule
        self.device = device
        self.queue = queue
        self.descriptor = descriptor
        self.register = register
        self.detail = detail
        self.vcpu = None if where is None else where[0]
        self.rip = None if where is None else where[1]
        self.count = 1

    @property
    def name(self) -> str:
        """The rule's identifier."""
        return self.rule.name

    def __str__(self) -> str:
        parts = [self.device]
        if self.queue is not None:
            parts.append(f"queue {self.queue}")
        if self.descriptor is not None:
            parts.append(f"descriptor {self.descriptor}")
        if self.register:
            parts.append(self.register)
        text = f"{', '.join(parts)}: the driver {self.rule.text}"
        if self.detail:
            text += f": {self.detail}"
        if self.rip is not None:
            text += f", at RIP {self.rip:#x}"
        source = self.rule.section if self.rule.section.startswith("PCI") else f"virtio 1.3, {self.rule.section}"
        return f"{text} ({source}) [{self.rule.name}, {self.rule.level}]"

    def __repr__(self) -> str:
        return f"<Finding {self.rule.name} of {self.device}, {self.count} times>"

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        rule = self.rule
        found = {"rule": rule.name, "level": rule.level, "section": rule.section, "text": str(self)}
        return found | {name: getattr(self, name) for name in self.__slots__ if name != "rule"}


class Findings:
    """All findings of one VM, in the order in which they were made.

    locate    locate() says which vCPU runs on the calling thread, and at which RIP, or None: a data plane's
    say       is told of each new finding, as a line; None: nobody is
    accesses, chains   how many of each were looked at: what "no findings" means
    lost      how many were beyond LIMIT
    """

    def __init__(
        self,
        say: Callable[[str], None] | None = None,
        locate: Callable[[], tuple[int, int] | None] = lambda: None,
    ) -> None:
        self.say = say
        self.locate = locate
        self.accesses = self.chains = self.lost = 0
        self._found: dict[tuple[str, str, int | None], Finding] = {}
        self._lock = Lock()

    def add(
        self,
        rule: str,
        device: str,
        *,
        queue: int | None = None,
        descriptor: int | None = None,
        register: str = "",
        detail: str = "",
    ) -> None:
        """`rule` was broken there, perhaps not for the first time."""
        key = rule, device, queue
        with self._lock:
            finding = self._found.get(key)
            if finding is not None:
                finding.count += 1
                return
            if len(self._found) >= LIMIT:
                self.lost += 1
                return
            where = self.locate()
            self._found[key] = finding = Finding(RULES[rule], device, queue, descriptor, register, detail, where)
        if self.say is not None:
            self.say(f"lint: {finding}")

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.all())

    def __len__(self) -> int:
        return len(self._found)

    def all(self) -> tuple[Finding, ...]:
        """As they are now."""
        with self._lock:
            return tuple(self._found.values())

    def names(self) -> set[str]:
        """The identifiers of the rules that were broken."""
        return {finding.name for finding in self.all()}
