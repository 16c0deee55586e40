"""Client of the agent inside a guest: commands, their streams, files, the clock.

Imports errors, and config for the names of the ports. What connects it to a VM is a pair of streams, the ports that
`VmConfig(agent=True)` adds; whoever has others, as a socket, brings an object with `send`, `recv` and `wait_open` and
makes a `session.Guest` or an `agent.GuestAgent` of it. docs/exec.md says what it is for.
"""
