"""Judges the exercises of lesson 1."""


def check_breaks(work):
    table = {
        "ADD": (False, False),
        "CLI": (True, True),
        "POPF": (True, False),
        "LGDT": (True, True),
        "SGDT": (True, False),
        "WBINVD": (False, True),
    }
    got = work.exercise.breaks(table)
    if got != {"POPF", "SGDT"}:
        return f"of {', '.join(table)}, breaks() names {got!r}, expected {{'POPF', 'SGDT'}}"
    if work.exercise.breaks({"CLI": (True, True)}) != set():
        return "where every sensitive instruction is privileged, breaks() is not an empty set"
    return ""


def check_handle(work):
    def fresh():
        return {"ip": 100, "interrupts": True, "halted": False, "al": 0x41, "output": {}}

    cases = [
        (("cli",), 1, {"interrupts": False}),
        (("hlt",), 1, {"halted": True}),
        (("out", 0x3F8), 2, {"output": {0x3F8: b"A"}}),
        (("in", 0x60), 2, {"al": 0xFF}),
        (("sti",), 1, {}),
    ]
    for instruction, length, change in cases:
        vcpu, expected = fresh(), fresh() | change | {"ip": 100 + length}
        work.exercise.handle(vcpu, length, instruction)
        for name, value in expected.items():
            if vcpu.get(name) != value:
                return (
                    f"after {instruction} of {length} bytes, vcpu[{name!r}] is {vcpu.get(name)!r}, expected {value!r}"
                )
    vcpu = fresh()
    work.exercise.handle(vcpu, 1, ("cli",))
    work.exercise.handle(vcpu, 1, ("sti",))
    if not vcpu["interrupts"]:
        return "after ('cli',) and ('sti',) interrupts are still off"
    work.exercise.handle(vcpu, 2, ("out", 0x3F8))
    work.exercise.handle(vcpu, 2, ("out", 0x3F8))
    if vcpu["output"] != {0x3F8: b"AA"}:
        return f"after two bytes to port 0x3f8, vcpu['output'] is {vcpu['output']!r}, expected {{0x3f8: b'AA'}}"
    vcpu = fresh()
    try:
        work.exercise.handle(vcpu, 3, ("lgdt",))
    except ValueError:
        return "" if vcpu == fresh() else "an instruction that is not known changed vcpu before ValueError was raised"
    return "an instruction that is not known, ('lgdt',), raised no ValueError"
