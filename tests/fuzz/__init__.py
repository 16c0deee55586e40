"""The structured fuzzer of the virtio devices: `python -m tests.fuzz`.

A case is a byte string. `cases` decodes it into what a driver, the host and time do, by a grammar in which zeros mean
the ordinary thing; `harness` does it to a device behind its transport, with `guard` watching guest memory; `subjects`
knows what each kind of device is asked and how it answers; `kinds` counts how often each kind of error was reached;
`fuzzer` makes cases, from its own generator and from those that reached something new (`lines`).
"""
