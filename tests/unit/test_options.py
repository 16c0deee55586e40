"""The option parser: what every spelling means, and one line for every mistake."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pyvmm.cli.options import FLAG, OPTIONAL, VALUE, Option, describe, parse, split_commas
from pyvmm.cli.runoptions import RUN
from pyvmm.config import VmConfig
from pyvmm.errors import UsageError
from tests.support.cli import ROOT

TABLE = (
    Option("mem", "a value", short="m", metavar="SIZE", convert=int),
    Option("append", "repeatable", short="a", metavar="STR", repeatable=True),
    Option("gdb", "an optional value", kind=OPTIONAL, metavar="PORT"),
    Option("stats", "a flag", short="s", kind=FLAG),
)


@pytest.mark.parametrize("argv", [["--mem", "512"], ["--mem=512"], ["-m512"], ["-m", "512"]])
def test_a_value_has_four_spellings(argv):
    assert parse(TABLE, argv).values == {"mem": 512}


def test_positional_words_may_stand_anywhere():
    arguments = parse(TABLE, ["kernel", "-m", "1", "other", "-s"])
    assert arguments.positional == ["kernel", "other"]
    assert arguments.values == {"mem": 1, "stats": True}


def test_a_value_may_begin_with_a_dash():
    assert parse(TABLE, ["-a", "-v", "--append", "-"]).values == {"append": ["-v", "-"]}


def test_a_lone_dash_is_positional():
    assert parse(TABLE, ["-"]).positional == ["-"]


def test_the_last_one_counts_unless_repeatable():
    assert parse(TABLE, ["-m1", "-m2", "-aA", "-aB"]).values == {"mem": 2, "append": ["A", "B"]}


def test_an_optional_value_is_only_taken_after_an_equals_sign():
    arguments = parse(TABLE, ["--gdb", "1234"])
    assert arguments.values == {"gdb": True} and arguments.positional == ["1234"]
    assert parse(TABLE, ["--gdb=1234"]).values == {"gdb": "1234"}


def test_argv_is_split_at_the_first_double_dash_before_anything():
    arguments = parse(TABLE, ["k", "--", "ls", "--", "--mem"])
    assert arguments.positional == ["k"] and arguments.command == ["ls", "--", "--mem"]
    assert parse(TABLE, ["k", "--"]).command == []
    assert parse(TABLE, ["k"]).command is None
    with pytest.raises(UsageError, match="--append needs a value"):
        parse(TABLE, ["--append", "--", "x"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--me", "5"], "unknown option --me"),
        (["--memory=5"], "unknown option --memory"),
        (["-x"], "unknown option -x"),
        (["--mem"], "--mem needs a value: --mem SIZE"),
        (["-m"], "-m needs a value"),
        (["--mem", "--stats"], "--mem needs a value before --stats .*--mem=--stats"),
        (["-a", "--mem=1"], "-a needs a value before --mem=1 .*--append=--mem=1"),
        (["--stats=yes"], "--stats takes no value, but has 'yes'"),
    ],
)
def test_mistakes_name_the_option(argv, message):
    with pytest.raises(UsageError, match=message):
        parse(TABLE, argv)


@pytest.mark.parametrize(
    ("argv", "name"), [(["--mem", "no"], "--mem"), (["--mem=no"], "--mem"), (["-mno"], "-m"), (["-m", "no"], "-m")]
)
def test_a_bad_value_names_the_option_as_it_was_written(argv, name):
    with pytest.raises(UsageError, match=f"^{name}: 'no' is not a size"):
        parse(RUN, argv)


@pytest.mark.parametrize(
    ("text", "parts"),
    [("", [""]), ("a", ["a"]), ("a,b", ["a", "b"]), ("a,,b", ["a,b"]), ("a,,,b", ["a,", "b"]), (",", ["", ""])],
)
def test_commas_separate_and_a_doubled_comma_is_a_comma(text, parts):
    assert split_commas(text) == parts


@given(st.lists(st.text(st.characters(exclude_characters="\0")), min_size=1))
def test_sub_options_survive_being_joined(parts):
    # Three commas in a row can be meant in two ways: a part that is empty or begins with one is only told apart
    # at the beginning.
    assume(all(part and not part.startswith(",") for part in parts[1:]))
    assert split_commas(",".join(part.replace(",", ",,") for part in parts)) == parts


# --- Any sequence of options comes back -------------------------------------------------------------------------

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
PLAIN = WORDS.filter(lambda word: not word.startswith("-") or word == "-")


DEVICES = ("disk", "net", "publish", "port", "rng", "fault", "share", "vsock", "balloon", "gdb", "shell", "explain")
"""Options whose values are read by functions with tests of their own (test_slots.py, test_gdb_server.py, ...)."""


@st.composite
def occurrences(draw: st.DrawFn) -> tuple[list[str], str, object]:
    """One thing on a command line: its words, the option's name ("" for a positional word), its value."""
    if draw(st.booleans()):
        word = draw(PLAIN)
        return [word], "", word
    option = draw(st.sampled_from([option for option in RUN if option.name not in DEVICES]))
    long = f"--{option.name}"
    if option.kind == FLAG:
        return [draw(st.sampled_from([long, *([f"-{option.short}"] if option.short else [])]))], option.name, True
    value = draw(
        {
            "mem": st.integers(1, 1 << 40).map(lambda size: f"{size}K"),
            "cpus": st.integers(0, 300).map(str),
            "kernel-format": st.sampled_from(["auto", "flat", "elf"]),
            "kernel-entry": st.sampled_from(["auto", "payload"]),
            "flat-mode": st.sampled_from(["real", "protected", "long"]),
            "load-addr": st.integers(0, 1 << 52).map(hex),
            "fault-seed": st.integers(0, 1 << 70).map(str),
            "datapath": st.sampled_from(["native", "python"]),
            "memory-backing": st.sampled_from(["anonymous", "memfd", "hugetlb"]),
            "exits": st.sampled_from(["fast", "plain"]),
            "transport": st.sampled_from(["auto", "mmio", "pci"]),
            "console": st.just("file:a,,b"),
            "trace": st.just("trace.jsonl"),
            "escape": st.sampled_from(["^A", "^]", "none", "x"]),
            "timeout": st.integers(1, 10**6).map(lambda ms: f"{ms}ms"),
            "log": st.sampled_from(["errors", "debug"]),
            "stuck": st.sampled_from(["never", "30s", "1.5"]),
            "on-panic": st.sampled_from(["exit", "wait", "pause"]),
            "fail-on": st.sampled_from(["oops", "warn", "oops,warn"]),
        }.get(option.name, PLAIN)
    )
    spellings = [[long, value], [f"{long}={value}"]]
    if option.short:
        spellings += [[f"-{option.short}", value]] + ([[f"-{option.short}{value}"]] if value else [])
    return draw(st.sampled_from(spellings)), option.name, option.convert(value)


@given(st.lists(occurrences(), max_size=12), st.none() | st.lists(WORDS, max_size=3))
def test_what_is_spelled_is_what_is_read(things, command):
    argv = [word for words, _, _ in things for word in words]
    assume("--" not in argv)
    arguments = parse(RUN, argv if command is None else [*argv, "--", *command])
    repeatable = {option.name for option in RUN if option.repeatable}
    expected: dict[str, object] = {}
    for _, name, value in things:
        if name in repeatable:
            expected[name] = [*expected.get(name, []), value]  # type: ignore[misc]
        elif name:
            expected[name] = value
    assert arguments.values == expected
    assert arguments.positional == [value for _, name, value in things if not name]
    assert arguments.command == command


@given(st.lists(st.text(max_size=12), max_size=8))
def test_anything_else_is_a_usage_error_and_nothing_worse(argv):
    try:
        parse(RUN, argv)
    except UsageError:
        pass


# --- The table of `pyvmm run` -----------------------------------------------------------------------------------


def test_names_and_letters_are_given_once():
    names = [option.name for option in RUN]
    letters = [option.short for option in RUN if option.short]
    assert len(set(names)) == len(names) and len(set(letters)) == len(letters)
    assert all(option.metavar for option in RUN if option.kind == VALUE)


def test_help_lists_every_option():
    text = describe("pyvmm run", RUN, "KERNEL", "what is booted", "Boot.", needed=False).format_help()
    for option in RUN:
        assert f"--{option.name}" in text and (not option.short or f"-{option.short}" in text)


def test_the_settings_of_a_vm_are_vmconfig_fields():
    from pyvmm.cli.configuration import SETTINGS

    for name in SETTINGS:
        assert name in {option.name for option in RUN}
        assert name.replace("-", "_") in VmConfig.__slots__


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--mem", "512Q"], "--mem: '512Q' is not a size"),
        (["--cpus", "two"], "--cpus: 'two' is not a number"),
        (["--timeout", "soon"], "--timeout: 'soon' is not a duration"),
        (["--load-addr", "here"], "--load-addr: 'here' is not an address"),
        (["--flat-mode", "virtual"], "--flat-mode: 'virtual' is unknown .*real, protected, long"),
        (["--kernel-format", "pe"], "--kernel-format: 'pe' is unknown .*auto, flat"),
        (["--log", "loud"], "--log: 'loud' is unknown .*errors, warn, info, debug"),
        (["--escape", "^ab"], "--escape: .* is not an escape key"),
        (["--console", "file:a,b"], "--console: unknown sub-option 'b' .*written twice"),
    ],
)
def test_bad_values_are_named(argv, message):
    with pytest.raises(UsageError, match=message):
        parse(RUN, argv)


def test_the_reference_documents_every_option_and_no_other():
    text = (ROOT / "docs" / "run.md").read_text()
    table = text.partition("## Options")[2].partition("\n\n- ")[0]
    first_cells = "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    documented = set(re.findall(r"`(--?[\w-]+)`", first_cells))
    assert documented == {f"--{option.name}" for option in RUN} | {f"-{option.short}" for option in RUN if option.short}


# --- Help -------------------------------------------------------------------------------------------------------


def test_the_help_writes_each_option_as_it_is_given():
    shown = describe("pyvmm x", RUN, "NAME", "what it is called", "Do it.").format_help()
    usage, _, options = shown.partition("Do it.")
    assert usage.endswith("NAME\n\n") and "  NAME  " in options and "what it is called" in options
    for option in RUN:
        if option.kind == OPTIONAL:
            assert f"[--{option.name}[={option.metavar}]]" in " ".join(usage.split())
            assert f"  --{option.name}[={option.metavar}]" in options
    columns = {len(line) - len(line.lstrip()) for line in options.splitlines() if line.startswith(" " * 10)}
    assert len(columns) == 1, "the texts of all options begin in one column"
