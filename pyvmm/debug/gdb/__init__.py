"""The gdb remote stub: a debugger on the outside stops, looks at and changes the guest (docs/debugging.md).

    server.py       sockets, the thread                      packets.py      frames, checksums
    session.py      packets to what they do                  description.py  which registers there are
    target.py       vCPUs that run and stop                  registers.py    their values
    points.py       breakpoints and watchpoints              memory.py       by linear and by physical address
    monitor.py      gdb's `monitor`

A vCPU's thread shows the stub each exit that may be its own (`DebuggedLoop`), stops there and asks for all vCPUs to
stand still; the server's thread waits for that, tells the client, and does what it asks for until it lets the guest go
on.
"""
