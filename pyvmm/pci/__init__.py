"""PCI as a guest sees it: configuration space, a host bridge, message signalled interrupts. No KVM, no bus.

A function is a configuration space with base address registers; behind each of those is a window, a device for the
bus. The host bridge takes configuration accesses to functions; a decoder keeps the windows where the guest puts them.
After "PCI Local Bus Specification, revision 3.0".
"""
