"""What can be called and looked at by name at the prompt. Imports its neighbours and the views."""

from __future__ import annotations

from pyvmm.debug import views
from pyvmm.debug.shell.stops import EXPECTED, Stop
from pyvmm.debug.views.contents import DUMP, INSTRUCTIONS, code_at
from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pyvmm.debug.shell.session import Shell

HELP = f"""\
vm, vcpu, exit      the VM (docs/api.md), the vCPU and the exit at which it stopped (None at entry)
regs, regs.rip      the vCPU's registers; regs.rax = 5 sets one
mem                 guest memory: mem.read(gpa, n), mem.write(gpa, b"...")
step(n=1)           n instructions
go()                on to the next exit of this kind
until(what)         on to this exit, and by go() to the next such: {EXPECTED[0]},
                    {EXPECTED[1]};
                    or a function (vcpu, exit) -> bool, called on the vCPU's thread
registers(all=False), walk(addr), dis(addr, n), dump(addr, n, physical=False)
memory(), tables(), devices(), queues(), irqchip(), lapic(n), pit(), exits()
                    what is where; addr is a number, a register or a symbol: 0x1000, "rsp+16"
quit()              end the run
Ctrl-D              let the guest go on; the prompt comes back at the next such exit, or with Ctrl-A S
"""


class LiveRegisters:
    """The registers of the shell's vCPU as they are now: read, set, or shown."""

    def __init__(self, shell: Shell) -> None:
        object.__setattr__(self, "_shell", shell)

    def _vcpu(self) -> Any:
        shell: Shell = object.__getattribute__(self, "_shell")
        return shell.vm.vcpus[shell.vcpu]

    def __getattr__(self, name: str) -> int:
        return getattr(self._vcpu().registers, name)  # type: ignore[no-any-return]

    def __setattr__(self, name: str, value: int) -> None:
        vcpu = self._vcpu()
        regs = vcpu.get_regs()
        if not hasattr(regs, name):
            raise UsageError(f"{name} cannot be set here (expected a general register, rip or rflags)")
        if not isinstance(value, int) or not 0 <= value < 1 << 64:
            raise UsageError(f"{name} = {str(value)[:40]} (expected 0 to 2^64 - 1)")
        setattr(regs, name, value)
        vcpu.set_regs(regs)

    def __dir__(self) -> list[str]:
        return list(self._vcpu().registers.keys())

    def __repr__(self) -> str:
        return repr(self._vcpu().registers)


class Commands:
    """The prompt's names: `namespace` is what its lines are done in."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        functions: dict[str, Callable[..., Any]] = {
            name: getattr(self, name)
            for name in (
                *("step", "go", "until", "registers", "walk", "dis", "dump", "memory", "tables", "devices", "queues"),
                *("irqchip", "lapic", "pit", "exits", "help", "quit"),
            )
        }
        self.namespace: dict[str, Any] = {"__name__": "__pyvmm__", "__builtins__": __builtins__, **functions}
        self.namespace |= {"vm": shell.vm, "regs": LiveRegisters(shell), "vcpu": None, "exit": None, "mem": None}

    def refresh(self) -> None:
        """It has stopped somewhere else."""
        shell = self._shell
        vcpu = shell.vm.vcpus[shell.vcpu]
        self.namespace |= {"vcpu": vcpu, "exit": shell.exit, "mem": shell.vm.memory}

    # --- Going on -------------------------------------------------------------------------------------------------

    def step(self, n: int = 1) -> None:
        """Execute `n` instructions; shows the next one."""
        shell = self._shell
        shell.vm.step(n, vcpu=shell.vcpu)
        shell.exit = None
        self.refresh()
        if shell.vm.exit is not None:
            print(shell.where(""), end="")
        else:
            print(f"-> {code_at(shell.vm, shell.vcpu)}")

    def go(self) -> None:
        """Let the guest go on to the next exit of this kind."""
        where = self._shell.go()
        self.refresh()
        print(where, end="")

    def until(self, what: str | Callable[[Any, Any], object]) -> None:
        """Let the guest go on to an exit, and have go() stop at such exits from now on."""
        self._shell.until(Stop(what) if isinstance(what, str) else what)
        self.go()

    def quit(self) -> None:
        """End the run."""
        self._shell.quit()

    # --- Looking --------------------------------------------------------------------------------------------------

    def _show(self, *words: str, physical: bool = False) -> None:
        shell = self._shell
        print("\n".join(views.look(shell.vm, words, vcpu=shell.vcpu, physical=physical)))

    def registers(self, all: bool = False) -> None:
        """All registers, bit by bit; with `all` those of FPU and SSE too."""
        self._show("registers", *(["all"] if all else []))

    def walk(self, address: int | str = "rip") -> None:
        """The page-table walk of a linear address."""
        self._show("paging", _word(address))

    def dis(self, address: int | str = "rip", n: int = INSTRUCTIONS) -> None:
        """`n` instructions."""
        self._show("disasm", _word(address), str(n))

    def dump(self, address: int | str, n: int = DUMP, physical: bool = False) -> None:
        """`n` bytes in hexadecimal."""
        self._show("dump", _word(address), str(n), physical=physical)

    def memory(self) -> None:
        """What lies where."""
        self._show("memory")

    def tables(self) -> None:
        """GDT, LDT and IDT."""
        self._show("tables")

    def devices(self) -> None:
        """Registers of the devices."""
        self._show("devices")

    def queues(self) -> None:
        """Virtqueues."""
        self._show("queues")

    def irqchip(self) -> None:
        """The PICs and the I/O APIC."""
        self._show("irqchip")

    def lapic(self, n: int | None = None) -> None:
        """The local APIC of this vCPU, or of vCPU `n`."""
        self._show("lapic", *([] if n is None else [str(n)]))

    def pit(self) -> None:
        """The PIT's channels."""
        self._show("pit")

    def exits(self) -> None:
        """The last exits."""
        self._show("exits")

    def help(self, *what: object) -> None:
        """This screen; of something else, Python's help."""
        if what:
            import pydoc

            pydoc.help(*what)
        else:
            print(HELP, end="")


def _word(address: int | str) -> str:
    return address if isinstance(address, str) else f"{address:#x}"
