"""What several tests share: what the machine has (`needs`), stand-ins for a neighbour (`lines`)."""

from __future__ import annotations

from tests.support.lines import RecordingLine

__all__ = ["RecordingLine"]
