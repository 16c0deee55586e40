"""What passes between a device and what is not its guest: back-ends, lines, clocks, the host; recorded and played back.

Imports nothing of pyvmm. A device under record is given proxies in the place of what it is connected to. Each message
over that border is an entry: a call or a look at an attribute ("get"), out of the device or in, and its return the
other way. Objects that are handed over become proxies in their turn, by name; buffers are copied, with what is filled
into them. When it is played back, what comes in is done again, and what goes out must be what went out before.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Entry = dict[str, Any]

_PLAIN = (type(None), bool, int, float, str)


class Parted(BaseException):
    """What a device does is not what is in the recording: `expected` that, `got` this. Not for devices to catch."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.expected = expected
        self.got = got


class Codec:
    """Values as JSON: bytes, buffers, tuples and objects are objects with one field, whose name says what it is."""

    def __init__(self, proxy: Callable[[str], object]) -> None:
        self._proxy = proxy
        self._named: dict[int, tuple[str, object]] = {}
        self._objects: dict[str, object] = {}
        self.views: list[tuple[memoryview, bytes]] = []
        """Buffers that were handed over, each with what was in it then."""

    def name(self, prefix: str, value: object) -> str:
        """The name by which `value` is known from now on."""
        known = self._named.get(id(value))
        if known is None:
            known = self._named[id(value)] = f"{prefix}#{len(self._named) + 1}", value
            self._objects[known[0]] = value
        return known[0]

    def encode(self, value: Any, prefix: str) -> Any:
        """`prefix` is for the name of an object that has none."""
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, bytes | bytearray):
            return {"bytes": bytes(value).hex()}
        if isinstance(value, memoryview):
            if not value.readonly:
                self.views.append((value, bytes(value)))
            return {"view": value.hex()}
        if isinstance(value, tuple):
            return {"tuple": [self.encode(one, prefix) for one in value]}
        if isinstance(value, list):
            return [self.encode(one, prefix) for one in value]
        if isinstance(value, Proxy):
            return {"object": object.__getattribute__(value, "proxy_name")}
        return {"object": self.name(prefix, value)}

    def decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.decode(one) for one in value]
        if not isinstance(value, dict):
            return value
        [(kind, inner)] = value.items()
        if kind == "bytes":
            return bytes.fromhex(inner)
        if kind == "view":
            return memoryview(bytearray.fromhex(inner))
        if kind == "tuple":
            return tuple(self.decode(one) for one in inner)
        return self._objects.get(inner) or self._proxy(inner)


class Proxy:
    """Stands for the object called `proxy_name` on the other side of the border."""

    def __init__(
        self, name: str, look: Callable[[str, str], Any], set: Callable[[str, str, Any], None] | None = None
    ) -> None:
        self.__dict__.update(proxy_name=name, proxy_look=look, proxy_set=set)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return self.proxy_look(self.proxy_name, attribute)

    def __setattr__(self, attribute: str, value: Any) -> None:
        self.__dict__[attribute] = value
        if callable(value) and self.proxy_set is not None:
            self.proxy_set(self.proxy_name, attribute, value)

    def __call__(self, *arguments: Any) -> Any:
        return self.proxy_look(self.proxy_name, "__call__")(*arguments)


class Recorder:
    """Lets a device work with real objects, and keeps what passes in `entries`."""

    def __init__(self, real: dict[str, Any]) -> None:
        self.entries: list[Entry] = []
        self._real = dict(real)
        self._proxies: dict[str, Proxy] = {}
        self._out = Codec(self._outer)  # objects of the device, which the outside gets proxies of
        self._in = Codec(self._inner)

    def object(self, name: str) -> Any:
        """What the device is to be connected to instead of the real object of that name."""
        return Proxy(name, self._look_out, self._set)

    def _set(self, name: str, attribute: str, value: Callable[..., Any]) -> None:
        """The device leaves a function with an object outside, to be called."""
        setattr(self._real[name], attribute, lambda *given: self._cross("in", f"{name}.{attribute}", value, given))

    def _outer(self, name: str) -> Any:
        return self._real[name]

    def _inner(self, name: str) -> Any:
        raise KeyError(name)

    def call(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """The host does something with the device: `function`, known as `name`."""
        return self._pass("in", name, function, arguments, arguments)

    def _look_out(self, name: str, attribute: str) -> Any:
        """The device looks at an attribute of an object outside."""
        return self._look("out", name, self._real[name], attribute)

    def _look(self, way: str, name: str, real: Any, attribute: str) -> Any:
        full = name if attribute == "__call__" else f"{name}.{attribute}"
        try:
            value = real if attribute == "__call__" else getattr(real, attribute)
        except AttributeError:
            self._note({way: "get", "name": full}, {_other(way): "return", "raises": ["AttributeError", attribute]})
            raise
        if not callable(value):
            passed, encoded = self._hand(_other(way), full, value)
            self._note({way: "get", "name": full}, {_other(way): "return", "value": encoded})
            return passed
        return lambda *arguments: self._cross(way, full, value, arguments)

    def _cross(self, way: str, name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        handed = tuple(self._hand(way, name, one)[0] for one in arguments)
        return self._pass(way, name, function, arguments, handed)

    def _pass(
        self, way: str, name: str, function: Callable[..., Any], shown: tuple[Any, ...], handed: tuple[Any, ...]
    ) -> Any:
        codec = self._out if way == "out" else self._in
        before = len(codec.views)
        self._note({way: "call", "name": name, "args": [codec.encode(one, "device") for one in shown]})
        back = _other(way)
        entry: Entry = {back: "return"}
        try:
            result = function(*handed)
            passed, entry["value"] = self._hand(back, name, result)
        except Exception as error:
            entry["raises"] = [type(error).__name__, *(one for one in error.args if isinstance(one, _PLAIN))]
            raise
        finally:
            if way == "out":  # also those that it was given while the call lasted
                handed_over = enumerate(codec.views[before:])
                filled = [[number, view.hex()] for number, (view, was) in handed_over if bytes(view) != was]
                if filled:
                    entry["filled"] = filled
            self._note(entry)
        return passed

    def _hand(self, way: str, name: str, value: Any) -> tuple[Any, Any]:
        """`value`, or a proxy of it, for the other side, and how it is written down."""
        if isinstance(value, tuple | list):
            both = [self._hand(way, name, one) for one in value]
            encoded: Any = [one for _, one in both]
            return type(value)(one for one, _ in both), {"tuple": encoded} if isinstance(value, tuple) else encoded
        if isinstance(value, Proxy):  # it comes home
            known = object.__getattribute__(value, "proxy_name")
            return self._real.get(known, value), {"object": known}
        codec = self._out if way == "out" else self._in
        encoded = codec.encode(value, "device" if way == "out" else name)
        if not isinstance(encoded, dict) or "object" not in encoded:
            return value, encoded
        known = encoded["object"]
        self._real[known] = value
        turned = _other(way)
        if known not in self._proxies:  # the other side may compare them, and keep things there

            def look(own: str, attribute: str) -> Any:
                return self._look(turned, own, value, attribute)

            self._proxies[known] = Proxy(known, look, self._set if turned == "out" else None)
        return self._proxies[known], encoded

    def _note(self, *entries: Entry) -> None:
        self.entries.extend({"kind": "outside", **entry} for entry in entries)


class Player:
    """Plays the part of the outside from the entries that `take()` gives, and looks on at what the device says."""

    def __init__(self, peek: Callable[[], Entry | None], take: Callable[[], Entry | None]) -> None:
        self._peek = peek
        self._take = take
        self._out = Codec(self.object)
        self._proxies: dict[str, Proxy] = {}
        self._targets: dict[str, Callable[..., Any]] = {}

    def object(self, name: str) -> Any:
        """What the device is to be connected to."""
        if name not in self._proxies:
            self._proxies[name] = Proxy(name, self._look, self._set)
        return self._proxies[name]

    def _set(self, name: str, attribute: str, value: Callable[..., Any]) -> None:
        self._targets[f"{name}.{attribute}"] = value

    def targets(self, targets: dict[str, Callable[..., Any]]) -> None:
        """What the host may call, by name."""
        self._targets |= targets

    def _look(self, name: str, attribute: str) -> Any:
        full = name if attribute == "__call__" else f"{name}.{attribute}"
        entry = self._peek()
        if entry is not None and entry.get("out") == "get" and entry["name"] == full:
            self._take()
            return self._answer()
        return lambda *arguments: self._call(full, arguments)

    def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        before = len(self._out.views)
        said = {"out": "call", "name": name, "args": [self._out.encode(one, "device") for one in arguments]}
        self._expect(said)
        return self._answer(before)

    def _expect(self, said: Entry) -> None:
        entry = self._take()
        expected = None if entry is None else {key: value for key, value in entry.items() if key in said}
        if entry is None or entry.get("kind") != "outside" or expected != said:
            raise Parted("nothing more" if entry is None else words(entry), words(said))

    def _answer(self, before: int = 0) -> Any:
        while True:
            entry = self._take()
            if entry is not None and entry.get("in") == "call":
                self.perform(entry)
                continue
            if entry is not None and entry.get("in") == "get":
                self._give(entry, self._resolve(entry["name"]))
                continue
            if entry is None or entry.get("in") != "return":
                raise Parted("nothing more" if entry is None else words(entry), "a call that has no answer")
            for number, content in entry.get("filled", ()):
                self._out.views[before + number][0][:] = bytes.fromhex(content)
            if "raises" in entry:
                raise _exception(*entry["raises"])
            return self._out.decode(entry.get("value"))

    def perform(self, entry: Entry) -> None:
        """Do what came in, a call; its result must be what it was."""
        function = self._resolve(entry["name"])
        arguments = [self._out.decode(one) for one in entry["args"]]
        said: Entry = {"out": "return"}
        try:
            said["value"] = self._out.encode(function(*arguments), "device")
        except Exception as error:
            said["raises"] = [type(error).__name__, *(one for one in error.args if isinstance(one, _PLAIN))]
        self._expect(said)

    def _give(self, entry: Entry, value: Any) -> None:
        self._expect({"out": "return", "value": self._out.encode(value, "device")})

    def _resolve(self, name: str) -> Any:
        if name in self._targets:
            return self._targets[name]
        base, _, attribute = name.rpartition(".")
        known = self._out.decode({"object": base or name})
        if isinstance(known, Proxy):
            raise Parted(f"the host calls {name}", "nothing of that name")
        return getattr(known, attribute) if base else known


def _other(way: str) -> str:
    return "in" if way == "out" else "out"


def _exception(name: str, *arguments: Any) -> Exception:
    import builtins

    from pyvmm import errors

    kind = getattr(errors, name, None) or getattr(builtins, name, None)
    if not isinstance(kind, type) or not issubclass(kind, Exception):
        kind = OSError
    return kind(*arguments)


def words(entry: Entry) -> str:
    """An entry in words."""
    if entry.get("kind") == "exit":
        return "that the access is over"
    if entry.get("kind") == "memory":
        return f"that {len(entry['data']) // 2} bytes of memory at {entry['at']:#x} change"
    what = entry.get("out") or entry.get("in")
    if what == "return":
        shown = f"raises {entry['raises']}" if "raises" in entry else f"the result {entry.get('value')!r}"
        return shown[:200]
    arguments = ", ".join(map(_shown, entry.get("args", ())))
    return f"{entry['name']}({arguments})"[:200] if what == "call" else str(entry["name"])


def _shown(value: Any) -> str:
    return str(next(iter(value.values()))) if isinstance(value, dict) else repr(value)
