"""virtio devices: one queue engine, one module a transport, one a device.

After the OASIS standard "Virtual I/O Device (VIRTIO) Version 1.3"; sections are cited as "virtio 1.3, 2.7". Nothing
here knows KVM: a doorbell and an interrupt are callables, so that every device also runs without /dev/kvm.
"""
