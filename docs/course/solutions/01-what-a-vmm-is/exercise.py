"""Solutions of lesson 1."""


def breaks(instructions: dict[str, tuple[bool, bool]]) -> set[str]:
    return {name for name, (sensitive, privileged) in instructions.items() if sensitive and not privileged}


def handle(vcpu: dict, length: int, instruction: tuple) -> None:
    match instruction:
        case ("cli",):
            vcpu["interrupts"] = False
        case ("sti",):
            vcpu["interrupts"] = True
        case ("hlt",):
            vcpu["halted"] = True
        case ("out", port):
            vcpu["output"][port] = vcpu["output"].get(port, b"") + bytes([vcpu["al"]])
        case ("in", _):
            vcpu["al"] = 0xFF
        case _:
            raise ValueError(f"{instruction} is not known")
    vcpu["ip"] += length
