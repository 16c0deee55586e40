"""A lint for drivers: what a guest's virtio drivers do against the specification, each time with its section.

`rules` says what is looked for, `findings` keeps what was found. `transports` sees every access of a register,
`registers` judges these, `config` the configuration space, `queues` the rings, `requests` what chains ask for. What
makes a ring unusable the queue engine finds by itself (`QueueError.rule`). Nothing of it is imported without need.
"""

from __future__ import annotations

from pyvmm.virtio.lint.findings import Finding, Findings
from pyvmm.virtio.lint.registers import DriverLint
from pyvmm.virtio.lint.rules import RULES, Rule
from pyvmm.virtio.lint.transports import LintedMmio, LintedPci

__all__ = ["RULES", "DriverLint", "Finding", "Findings", "LintedMmio", "LintedPci", "Rule"]
