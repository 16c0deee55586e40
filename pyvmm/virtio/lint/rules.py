"""What a driver lint looks for: every finding's identifier, level, section of virtio 1.3, and sentence.

Imports nothing. docs/lint.md shows this table; a test compares the two.
"""

from __future__ import annotations

MUST, SHOULD, HINT = "must", "should", "hint"
"""Levels: the specification demands it; it advises it; it is legal, and hardly what the driver meant."""


class Rule:
    """One thing that a driver may do wrong.

    name      the stable identifier, as "features-ok-skipped"
    level     MUST, SHOULD or HINT
    section   of virtio 1.3, or of what else is named
    text      what the driver did, as a clause
    """

    __slots__ = ("level", "name", "section", "text")

    def __init__(self, name: str, level: str, section: str, text: str) -> None:
        self.name = name
        self.level = level
        self.section = section
        self.text = text

    def __repr__(self) -> str:
        return f"<Rule {self.name}, {self.level}, {self.section}>"


_TABLE = (
    # --- Finding the device, its status (2.1, 3.1.1) ---------------------------------------------------------------
    ("identity-unread", MUST, "4.2.3.1.1", "acknowledged a device before it had read MagicValue, Version and DeviceID"),
    ("reset-missing", MUST, "3.1.1", "began without a reset: status 0 was not written before ACKNOWLEDGE"),
    ("reset-not-awaited", MUST, "4.1.4.3.2", "went on after a reset without having read status 0"),
    ("status-order", MUST, "3.1.1", "set a status bit before the one that comes first"),
    ("status-cleared", MUST, "2.1.1", "cleared a status bit without a reset"),
    ("status-unknown", MUST, "2.1", "set a status bit that does not exist"),
    ("status-after-failed", MUST, "2.1.1", "went on after FAILED without a reset"),
    ("features-ok-skipped", MUST, "3.1.1", "set DRIVER_OK without FEATURES_OK before it"),
    ("features-ok-unread", MUST, "3.1.1", "did not read the status after FEATURES_OK, to see whether it is still set"),
    ("features-ok-refused", MUST, "3.1.1", "went on though the device did not keep FEATURES_OK"),
    ("driver-ok-without-queues", HINT, "3.1.1", "set DRIVER_OK before any queue was set up"),
    ("queue-after-driver-ok", MUST, "3.1.1", "set up a queue after DRIVER_OK"),
    # --- Features (2.2) ----------------------------------------------------------------------------------------------
    ("features-unread", MUST, "3.1.1", "accepted features without having read those that the device offers"),
    ("feature-not-offered", MUST, "2.2.1", "accepted a feature that the device did not offer"),
    ("feature-requires", MUST, "2.2.1", "accepted a feature without one that it requires"),
    ("version-1-missing", MUST, "6.1", "did not accept VIRTIO_F_VERSION_1, which is offered"),
    ("features-early", MUST, "3.1.1", "wrote features before it had set DRIVER"),
    ("features-late", MUST, "3.1.1", "changed the features after FEATURES_OK"),
    ("features-unselected", MUST, "4.2.2.2", "used DeviceFeatures or DriverFeatures without having selected the word"),
    # --- Configuration space (2.5) -----------------------------------------------------------------------------------
    ("config-torn", SHOULD, "2.5.1", "read a field of several accesses without ConfigGeneration before and after"),
    ("config-not-offered", MUST, "2.5.1", "used a configuration field whose feature is not offered"),
    ("config-width", MUST, "4.1.3.1, 4.2.2.2", "used a configuration field with another width than its own"),
    ("config-outside", MUST, "4.2.2.2", "went beyond the device's configuration space"),
    ("config-read-only", MUST, "5.x.4 of each device", "wrote a configuration field that drivers only read"),
    ("config-early-write", MUST, "3.1.1", "wrote to the configuration space before FEATURES_OK"),
    # --- Registers ---------------------------------------------------------------------------------------------------
    ("register-width", MUST, "4.1.3.1, 4.2.2.2", "used a register with another width than its own, or not aligned"),
    ("register-unknown", MUST, "4.2.2.2", "used a register that does not exist"),
    ("register-read-only", MUST, "4.1.4.3.2, 4.2.2.2", "wrote a read-only register"),
    ("register-write-only", MUST, "4.2.2.2", "read a write-only register"),
    ("shared-memory", MUST, "4.2.3.1.1", "used the shared memory registers of a device that has no shared memory"),
    # --- Setting up queues (2.7, 4.1.5.1.3, 4.2.3.2) -----------------------------------------------------------------
    ("queue-early", MUST, "3.1.1", "set up a queue before FEATURES_OK"),
    ("queue-unknown", MUST, "4.1.5.1.3, 4.2.3.2", "set up a queue that the device does not have"),
    ("queue-size", MUST, "2.7, 4.1.4.3.2, 4.2.2.2", "chose a queue size that is no power of two or above the largest"),
    ("queue-misaligned", MUST, "2.7.1", "put a part of a queue at an address that is not aligned"),
    ("queue-outside-ram", MUST, "2.7", "put a part of a queue where there is no memory"),
    ("queue-overlap", MUST, "2.7", "let two parts of a queue overlap"),
    ("queue-frozen", MUST, "4.1.4.3.2, 4.2.2.2", "changed a field of a queue that was enabled"),
    ("queue-disable", MUST, "4.1.4.3.2", "wrote 0 to queue_enable"),
    ("queue-disable-unread", MUST, "4.2.2.2", "did not read QueueReady after it had written 0 there"),
    ("used-ring-dirty", MUST, "2.7.8, 2.7.10.1", "enabled a queue whose used ring was not all zero at its beginning"),
    # --- Descriptors (2.7.5) -----------------------------------------------------------------------------------------
    ("readable-after-writable", MUST, "2.7.4.2", "put a readable buffer after a writable one"),
    ("chain-loop", MUST, "2.7.5.2, 2.7.5.3.1", "made a chain that is a loop or longer than the queue"),
    ("chain-too-long", MUST, "2.7.5.2", "made a chain of more than 2^32 bytes"),
    ("buffer-outside-ram", MUST, "2.7.5", "named a buffer where there is no memory"),
    ("next-out-of-range", MUST, "2.7.5", "let a chain go on outside of its table"),
    ("descriptor-flags", HINT, "2.7.5", "set a flag of a descriptor that does not exist"),
    ("descriptor-empty", HINT, "2.7.13.1", "made a descriptor of length 0"),
    ("descriptor-in-flight", MUST, "2.7.13.1, 3.3.1", "reused a descriptor that is in flight"),
    ("descriptor-changed", MUST, "3.3.1", "changed a descriptor while the device had it"),
    ("indirect-not-negotiated", MUST, "2.7.5.3.1", "used an indirect descriptor without VIRTIO_F_INDIRECT_DESC"),
    ("indirect-nested", MUST, "2.7.5.3.1", "put an indirect descriptor into an indirect table"),
    ("indirect-next", MUST, "2.7.5.3.1", "set both INDIRECT and NEXT"),
    ("indirect-length", MUST, "2.7.5.3", "gave an indirect table a length that is 0 or no multiple of 16"),
    ("indirect-too-long", MUST, "2.7.5.3.1", "made an indirect table longer than the queue"),
    ("indirect-outside-ram", MUST, "2.7.5.3", "put an indirect table where there is no memory"),
    # --- Rings (2.7.6 to 2.7.8) --------------------------------------------------------------------------------------
    ("index-jump", MUST, "2.7.6, 2.7.13", "moved the available index on by more than the queue's size"),
    ("index-decremented", MUST, "2.7.6.1", "moved the available index back"),
    ("head-out-of-range", MUST, "2.7.6", "made a descriptor available that is not in the table"),
    ("entry-late", MUST, "2.7.13, 2.7.13.3.1", "wrote an entry of the available ring after the index that tells of it"),
    ("available-flags", MUST, "2.7.7.1", "set flags of the available ring that must be 0"),
    ("used-ring-written", MUST, "2.7", "wrote to the used ring, which is the device's"),
    # --- Notifications (2.7.10, 4.1.5.2, 4.2.3.3) --------------------------------------------------------------------
    ("notify-early", MUST, "3.1.1", "notified the device before DRIVER_OK"),
    ("notify-not-ready", MUST, "4.1.5.2, 4.2.3.3", "notified a queue that is not enabled"),
    ("notify-unknown", MUST, "4.1.5.2, 4.2.3.3", "notified a queue that the device does not have"),
    ("notify-width", MUST, "4.1.5.2.1, 4.2.2.2", "notified by a write of the wrong width"),
    ("notify-value", MUST, "4.1.5.2.1", "wrote another value than the queue's number to its notification address"),
    ("notify-suppressed", HINT, "2.7.10.1", "notified again and again though the device had asked it not to"),
    ("notify-missing", MUST, "2.7.10.1", "made buffers available and did not notify the device, which waits for it"),
    # --- Interrupts (4.1.4.5, 4.1.5.1.2, 4.2.3.4) --------------------------------------------------------------------
    ("ack-not-pending", HINT, "4.2.2.2", "acknowledged an interrupt that was not pending"),
    ("ack-undefined", MUST, "4.2.2.2", "set undefined bits of InterruptACK"),
    ("ack-unread", MUST, "4.2.3.4.1", "acknowledged an interrupt without having seen it in InterruptStatus"),
    ("isr-with-msix", HINT, "4.1.4.5.2", "read the ISR status though MSI-X is enabled, and it says nothing of queues"),
    ("vector-out-of-range", MUST, "4.1.5.1.2.2", "chose an MSI-X vector outside of the table"),
    ("vector-unread", MUST, "4.1.5.1.2.2", "did not read back an MSI-X vector, to see whether the device took it"),
    ("no-bus-master", HINT, "PCI 3.0, 6.2.2", "set DRIVER_OK while the function may not access memory (bus master)"),
    # --- Block device (5.2) ------------------------------------------------------------------------------------------
    ("blk-header", MUST, "5.2.6", "made a request without room for its header or its status"),
    ("blk-direction", MUST, "5.2.6", "gave a request data that go the wrong way"),
    ("blk-length", MUST, "5.2.6.1", "asked for data whose length is no multiple of 512"),
    ("blk-capacity", MUST, "5.2.6.1", "asked for sectors beyond the disk's capacity"),
    ("blk-read-only", HINT, "5.2.6.2", "wrote to a disk that is read-only"),
    ("blk-type", MUST, "5.2.6", "made a request of a type that is unknown or was not negotiated"),
    ("blk-id-length", MUST, "5.2.6.1", "asked for the disk's name with other than 20 bytes for it"),
    ("blk-segments", MUST, "5.2.6.1", "named segments to discard or zero that are too many, too long or no whole ones"),
    ("blk-flags", MUST, "5.2.6.1", "set a flag of a segment that this request does not have"),
    ("blk-flush-sector", MUST, "5.2.6.1", "set a sector in a flush"),
    ("blk-flush-data", SHOULD, "5.2.6.1", "put data into a flush"),
    ("blk-sector", SHOULD, "5.2.6", "set a sector in a request that has no use for one"),
    ("blk-writeback-early", MUST, "5.2.5.1", "read the cache mode before FEATURES_OK"),
    # --- Network device (5.1) ----------------------------------------------------------------------------------------
    ("net-direction", MUST, "5.1.6", "put readable buffers into a receiveq or writable ones into a transmitq"),
    ("net-receive-header", MUST, "5.1.6.3.1", "made a receive buffer available that has no room for the header"),
    ("net-receive-small", SHOULD, "5.1.6.3.1", "made a receive buffer available that is too small for a packet"),
    ("net-short", MUST, "5.1.6.2", "sent a packet without a whole header"),
    ("net-header", MUST, "5.1.6.2.1", "sent a packet whose header asks for what was not negotiated or cannot be"),
    ("net-flags", MUST, "5.1.6.2.1", "set flags of a packet's header that it must not, or did not negotiate"),
    ("net-num-buffers", MUST, "5.1.6.2.1", "sent a packet whose num_buffers is not 0"),
    ("net-mtu", MUST, "5.1.4.2", "sent a packet above the MTU that was negotiated"),
    # --- Other devices -----------------------------------------------------------------------------------------------
    ("console-direction", MUST, "5.3.6.1", "put readable buffers into a receiveq or writable ones into a transmitq"),
    ("console-control", MUST, "5.3.6.2", "sent a control message that is too short"),
    ("console-event", HINT, "5.3.6.2", "sent a control message that only a device sends, or that does not exist"),
    ("rng-readable", MUST, "5.4.6.1", "put a readable buffer into the queue of an entropy device"),
    ("balloon-direction", MUST, "5.5.6", "gave the balloon a buffer of the wrong direction"),
    ("balloon-numbers", MUST, "5.5.6", "named pages in a buffer that is no whole number of them"),
    ("balloon-statistics", MUST, "5.5.6.3.1", "made a second buffer available in the statsq"),
    ("vsock-direction", MUST, "5.10.6.4", "put a buffer of the wrong direction into a queue of a socket device"),
    ("vsock-header", MUST, "5.10.6", "sent a packet without a whole header"),
    ("vsock-length", MUST, "5.10.6", "sent a packet with fewer bytes of data than its header says"),
    ("vsock-cid", MUST, "5.10.6.4.1", "sent a packet from another CID than its own"),
)

RULES = {name: Rule(name, level, section, text) for name, level, section, text in _TABLE}
"""All of them, by name, in the order of docs/lint.md."""
assert len(RULES) == len(_TABLE)
