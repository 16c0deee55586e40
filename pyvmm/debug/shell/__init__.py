"""A Python prompt at an exit, with the stopped VM in hand: `pyvmm run --shell` and `vm.shell()`.

`stops` says at which exits, `session` steers the VM and has what can be called at the prompt, `prompt` reads lines.
Below `vm`: the session is given the VM and its Control. It runs on the thread that waits for the VM, never on a vCPU's.
"""
