"""What can be saved: the base of every model. Imports state when one is saved or restored."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, ClassVar

    from pyvmm.state import Kind


class Stateful:
    """A model that can be saved: STATE has the kind of each attribute that is state. One without STATE cannot be.

    `name` is what messages call it. `save` and `restore` are called while nobody else touches the model; it is restored
    when it has just been made.
    """

    __slots__ = ()
    STATE: ClassVar[Mapping[str, Kind] | None] = None

    def save(self) -> dict[str, Any]:
        """Its state. Raises StateError where it has none that could be saved."""
        from pyvmm.state import StateError, saved

        if self.STATE is None:
            raise StateError(f"{self.name} cannot be saved yet")  # type: ignore[attr-defined]
        return saved(self, self.STATE)

    def restore(self, state: Any) -> None:
        """Be as `state` says, which `save` gave. Raises StateError, having changed nothing."""
        from pyvmm.state import StateError, judged

        name = self.name  # type: ignore[attr-defined]
        if self.STATE is None:
            raise StateError(f"{name} cannot be restored yet")
        for attribute, value in judged(name, state, self.STATE).items():
            setattr(self, attribute, value)
        self.restored()

    def restored(self) -> None:
        """Its attributes have been restored: see to what follows from them."""
