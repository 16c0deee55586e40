"""The bits of an access's value one by one, with what each means, from the declarations of pyvmm's own devices.

Imports naming when the first access is looked at. A trace names the model of each device and the register of each
access; of a device that pyvmm does not know, or a header that makes no sense, nothing is told.
"""

from __future__ import annotations

from pyvmm.trace.fields import SENSELESS, number, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.trace.fields import Record
    from pyvmm.trace.naming import Names


class Bits:
    """Knows the devices that a trace's `header` names."""

    def __init__(self, header: Record) -> None:
        self._header = header
        self._known: dict[str, Names | None] = {}

    def of(self, record: Record) -> list[str]:
        """A line for each field of the register that has a value: its bits, name, value and meaning."""
        device = text(record, "device")
        try:
            if device not in self._known:
                self._known[device] = self._names(device)
            names = self._known[device]
            register = names.named(text(record, "register")) if names is not None else None
            data = bytes.fromhex(text(record, "data"))
        except SENSELESS:
            return []
        if register is None or len(data) != register.width or number(record, "count") > 1:
            return []
        value = int.from_bytes(data, "little")
        return [
            f"  {_places(field.mask):>7}  {field.describe(value):<24} {field.meaning}"
            for field in register.fields
            if field.of(value)
        ]

    def _names(self, device: str) -> Names | None:
        from pyvmm.trace.naming import MODELS

        entries: Any = self._header.get("devices", ())
        entry = next((one for one in entries if one.get("name") == device), None)
        return MODELS[entry["model"]](entry) if entry is not None and entry.get("model") in MODELS else None


def _places(mask: int) -> str:
    """ "bit 5" or "bits 1-3"."""
    low, high = (mask & -mask).bit_length() - 1, mask.bit_length() - 1
    return f"bit {low}" if low == high else f"{low}-{high}"
