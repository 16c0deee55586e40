"""Exercises of lesson 1. Replace each `...` by your code; `pyvmm lesson check 1 .` says how far you are."""


def breaks(instructions: dict[str, tuple[bool, bool]]) -> set[str]:
    """The names of the instructions because of which trap and emulate does not work.

    `instructions` maps a name to (sensitive, privileged), as Popek and Goldberg mean it.
    """
    ...


def handle(vcpu: dict, length: int, instruction: tuple) -> None:
    """Do to the virtual machine what an instruction that trapped would have done to a real one.

    `vcpu` is the virtual processor: "ip" (an int), "interrupts" and "halted" (bools), "al" (the register), and
    "output", a dict from a port to the bytes written there so far. The instruction is `length` bytes long, and one of

        ("cli",)        interrupts are off
        ("sti",)        interrupts are on
        ("hlt",)        the processor is halted
        ("out", port)   AL is written to the port
        ("in", port)    AL is read from the port: 0xff, for nobody is there

    Afterwards the guest goes on behind the instruction. Any other instruction raises ValueError and changes nothing.
    """
    ...
