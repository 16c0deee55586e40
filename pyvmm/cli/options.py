"""Options as rows of a table, and the parser that reads argv by such a table.

Imports errors. argparse costs 7 ms at every start, so it is only built, from the same table,
for `--help`. The rules: argv is split at the first `--` before anything else; names are never abbreviated; an
optional value is only taken as `--flag=value`; of an option given twice the last counts, unless it is repeatable;
where a value has sub-options, commas separate them and a doubled comma is a comma.
"""

from __future__ import annotations

from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

FLAG, VALUE, OPTIONAL = "flag", "value", "optional"


class Option:
    """One row of the table.

    name        without its dashes; `short` is one letter or ""
    kind        FLAG (no value), VALUE (`--x V`, `--x=V`, `-xV`, `-x V`) or OPTIONAL (`--x` or `--x=V`)
    metavar     how help calls the value
    convert     makes the value of the text; raises UsageError
    repeatable  whether each occurrence counts; the value is then a list
    help        one sentence
    """

    __slots__ = ("convert", "help", "kind", "metavar", "name", "repeatable", "short")

    def __init__(
        self,
        name: str,
        help: str,
        *,
        short: str = "",
        kind: str = VALUE,
        metavar: str = "",
        convert: Callable[[str], object] = str,
        repeatable: bool = False,
    ) -> None:
        self.name = name
        self.help = help
        self.short = short
        self.kind = kind
        self.metavar = metavar
        self.convert = convert
        self.repeatable = repeatable


class Arguments:
    """What argv says: `values` by option name (only what was given), `positional`, and the words after `--`.

    `command` is None where there is no `--`.
    """

    __slots__ = ("command", "positional", "values")

    def __init__(self, values: dict[str, object], positional: list[str], command: list[str] | None) -> None:
        self.values = values
        self.positional = positional
        self.command = command


def parse(table: Sequence[Option], argv: Sequence[str]) -> Arguments:
    """Read `argv` by `table`. Raises UsageError, which names the option."""
    words = list(argv)
    command = None
    if "--" in words:
        end = words.index("--")
        words, command = words[:end], words[end + 1 :]
    names = {f"--{option.name}": option for option in table}
    names |= {f"-{option.short}": option for option in table if option.short}
    values: dict[str, object] = {}
    positional: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith("-") or word == "-":
            positional.append(word)
            continue
        name: str
        value: str | None
        if word.startswith("--"):
            name, equals, text = word.partition("=")
            value = text if equals else None
        else:
            name, value = word[:2], word[2:] or None
        option = names.get(name)
        if option is None:
            raise UsageError(f"unknown option {name}")
        if option.kind == FLAG and value is not None:
            raise UsageError(f"{name} takes no value, but has {value!r}")
        if option.kind == VALUE and value is None:
            if position == len(words):
                raise UsageError(f"{name} needs a value: {name} {option.metavar}")
            value = words[position]
            position += 1
            if value.partition("=")[0] in names and value.startswith("--"):
                raise UsageError(f"{name} needs a value before {value} (if that is the value: --{option.name}={value})")
        _store(values, option, name, value)
    return Arguments(values, positional, command)


def _store(values: dict[str, object], option: Option, name: str, text: str | None) -> None:
    value: object = True
    if text is not None:
        try:
            value = option.convert(text)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None
    if option.repeatable:
        found = values.setdefault(option.name, [])
        assert isinstance(found, list)
        found.append(value)
    else:
        values[option.name] = value


def split_commas(text: str) -> list[str]:
    """The parts of `text` between single commas; a doubled comma is a comma in a part."""
    # NUL cannot be in a program's arguments.
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]


def describe(
    program: str, table: Sequence[Option], positional: str, what: str, text: str, *, needed: bool = True
) -> argparse.ArgumentParser:
    """An argparse parser of the same table, for its help; never for parsing.

    `positional` is how the usage line calls what is no option, `what` says what that is and `needed` whether it may
    not be left out; `text` is the sentence above the options.
    """
    import argparse

    class Formatter(argparse.HelpFormatter):
        """With `--x[=V]` for a value that may be left out: it is never a word of its own."""

        def _format_action_invocation(self, action: argparse.Action) -> str:
            return super()._format_action_invocation(action).replace(" [=", "[=")

        def format_help(self) -> str:
            return super().format_help().replace(" [=", "[=")

    parser = argparse.ArgumentParser(
        prog=program,
        description=text,
        allow_abbrev=False,
        add_help=False,
        formatter_class=lambda prog: Formatter(prog, max_help_position=30),
    )
    parser.add_argument("what", metavar=positional, nargs=None if needed else "?", help=what)
    for option in table:
        names = [f"-{option.short}"] if option.short else []
        names.append(f"--{option.name}")
        help = option.help.replace("%", "%%")
        if option.kind == FLAG:
            parser.add_argument(*names, action="store_true", help=help)
        else:
            optional = option.kind == OPTIONAL
            metavar = f"={option.metavar}" if optional else option.metavar
            parser.add_argument(*names, metavar=metavar, nargs="?" if optional else None, help=help)
    return parser
