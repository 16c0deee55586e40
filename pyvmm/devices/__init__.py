"""Platform devices of the PC: registers, queues and injected back-ends.

A device knows neither KVM nor a vCPU, a thread or its own address. It may import registers, events and
errors. The bus holds a device's `lock` around `read` and `write`; whatever a guest does, neither raises,
blocks or grows without bound.
"""
