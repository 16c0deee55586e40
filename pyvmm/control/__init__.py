"""The control socket of a running VM: where it is, who serves it, and how another program talks to it.

Above vm, below the command line. A request is a line of JSON, {"command": "balloon", "size": 67108864}, and so is its
answer, {"ok": {...}} or {"error": "...", "status": 2}: the text of the error and the exit status of its kind.
"""
