"""The numbers of the virtio standard, each with its section. Imports nothing.

Names are the standard's own; where Linux's headers have the same number the tests compare the two.
"""

from __future__ import annotations

# --- Device types (5) --------------------------------------------------------------------------------------------
ID_NET = 1
ID_BLOCK = 2
ID_CONSOLE = 3
ID_RNG = 4
ID_BALLOON = 5
ID_9P = 9
ID_VSOCK = 19

DEVICE_NAMES = {
    ID_NET: "net",
    ID_BLOCK: "block",
    ID_CONSOLE: "console",
    ID_RNG: "rng",
    ID_BALLOON: "balloon",
    ID_9P: "9p",
    ID_VSOCK: "vsock",
}

# --- Device status field (2.1) -----------------------------------------------------------------------------------
STATUS_ACKNOWLEDGE = 1
STATUS_DRIVER = 2
STATUS_DRIVER_OK = 4
STATUS_FEATURES_OK = 8
STATUS_NEEDS_RESET = 64
STATUS_FAILED = 128

# --- Feature bits (2.2; 6) ---------------------------------------------------------------------------------------
F_RING_INDIRECT_DESC = 28
F_RING_EVENT_IDX = 29
F_VERSION_1 = 32
F_ACCESS_PLATFORM = 33
F_RING_PACKED = 34
F_IN_ORDER = 35
F_RING_RESET = 40

# --- Split virtqueues (2.7) --------------------------------------------------------------------------------------
QUEUE_SIZE_LIMIT = 1 << 15
"""2.7: the largest size of a queue."""
DESC_SIZE = 16
DESC_F_NEXT = 1
DESC_F_WRITE = 2
DESC_F_INDIRECT = 4
"""2.7.5: flags of a descriptor."""
DESC_ALIGN, AVAIL_ALIGN, USED_ALIGN = 16, 2, 4
"""2.7, the table of sizes and alignments."""
AVAIL_F_NO_INTERRUPT = 1
USED_F_NO_NOTIFY = 1
CHAIN_LIMIT = 1 << 32
"""2.7.5.2: bytes that all buffers of one chain may have together."""

# --- virtio over PCI (4.1) ---------------------------------------------------------------------------------------
PCI_VENDOR = 0x1AF4
PCI_DEVICES = 0x1040
"""4.1.2: PCI's device id is this plus the virtio device's."""
PCI_CAP_COMMON_CFG, PCI_CAP_NOTIFY_CFG, PCI_CAP_ISR_CFG, PCI_CAP_DEVICE_CFG, PCI_CAP_PCI_CFG = 1, 2, 3, 4, 5
"""4.1.4: types of capabilities."""
PCI_CAP_BAR, PCI_CAP_OFFSET, PCI_CAP_LENGTH, PCI_CAP_DATA = 4, 8, 12, 16
"""4.1.4, 4.1.4.9: offsets in a capability."""
MSI_NO_VECTOR = 0xFFFF
"""4.1.5.1.2: no message."""

# --- virtio over MMIO (4.2.2) ------------------------------------------------------------------------------------
MMIO_MAGIC = 0x74726976
MMIO_VERSION = 2
MMIO_CONFIG = 0x100
"""Where the device's configuration space begins."""
INTERRUPT_USED_BUFFER = 1
INTERRUPT_CONFIG_CHANGE = 2

# --- Block device (5.2) ------------------------------------------------------------------------------------------
SECTOR = 512
"""5.2.4: the unit of capacity and of every request's position, whatever the block size."""
BLK_F_SIZE_MAX = 1
BLK_F_SEG_MAX = 2
BLK_F_GEOMETRY = 4
BLK_F_RO = 5
BLK_F_BLK_SIZE = 6
BLK_F_FLUSH = 9
BLK_F_TOPOLOGY = 10
BLK_F_CONFIG_WCE = 11
BLK_F_MQ = 12
BLK_F_DISCARD = 13
BLK_F_WRITE_ZEROES = 14
BLK_T_IN, BLK_T_OUT, BLK_T_FLUSH, BLK_T_GET_ID = 0, 1, 4, 8
BLK_T_DISCARD, BLK_T_WRITE_ZEROES = 11, 13
"""5.2.6: request types."""
BLK_S_OK, BLK_S_IOERR, BLK_S_UNSUPP = 0, 1, 2
BLK_ID_BYTES = 20
BLK_WRITE_ZEROES_FLAG_UNMAP = 1

# --- Network device (5.1) ----------------------------------------------------------------------------------------
NET_F_CSUM = 0
NET_F_GUEST_CSUM = 1
NET_F_MTU = 3
NET_F_MAC = 5
NET_F_GUEST_TSO4 = 7
NET_F_GUEST_TSO6 = 8
NET_F_GUEST_ECN = 9
NET_F_GUEST_UFO = 10
NET_F_HOST_TSO4 = 11
NET_F_HOST_TSO6 = 12
NET_F_HOST_ECN = 13
NET_F_HOST_UFO = 14
NET_F_MRG_RXBUF = 15
NET_F_STATUS = 16
NET_F_CTRL_VQ = 17
NET_F_CTRL_RX = 18
NET_F_CTRL_VLAN = 19
NET_F_CTRL_RX_EXTRA = 20
NET_F_CTRL_MAC_ADDR = 23
NET_S_LINK_UP = 1
NET_HDR_LENGTH = 12
"""5.1.6: with num_buffers, which a device of version 1 always has."""
NET_HDR_F_NEEDS_CSUM = 1
NET_HDR_F_DATA_VALID = 2
NET_HDR_F_UDP_TUNNEL_CSUM = 8
NET_HDR_GSO_NONE, NET_HDR_GSO_TCPV4, NET_HDR_GSO_UDP, NET_HDR_GSO_TCPV6 = 0, 1, 3, 4
NET_HDR_GSO_ECN = 0x80
NET_CTRL_RX, NET_CTRL_MAC = 0, 1
NET_CTRL_RX_PROMISC, NET_CTRL_RX_ALLMULTI, NET_CTRL_RX_ALLUNI = 0, 1, 2
NET_CTRL_RX_NOMULTI, NET_CTRL_RX_NOUNI, NET_CTRL_RX_NOBCAST = 3, 4, 5
NET_CTRL_MAC_TABLE_SET, NET_CTRL_MAC_ADDR_SET = 0, 1
NET_CTRL_OK, NET_CTRL_ERR = 0, 1

# --- Console device (5.3) ----------------------------------------------------------------------------------------
CONSOLE_F_SIZE = 0
CONSOLE_F_MULTIPORT = 1
CONSOLE_F_EMERG_WRITE = 2
CONSOLE_DEVICE_READY, CONSOLE_DEVICE_ADD, CONSOLE_DEVICE_REMOVE, CONSOLE_PORT_READY = 0, 1, 2, 3
CONSOLE_CONSOLE_PORT, CONSOLE_RESIZE, CONSOLE_PORT_OPEN, CONSOLE_PORT_NAME = 4, 5, 6, 7
"""5.3.6.2: events of the control queues."""

# --- Traditional memory balloon device (5.5) ---------------------------------------------------------------------
BALLOON_F_MUST_TELL_HOST = 0
BALLOON_F_STATS_VQ = 1
BALLOON_F_DEFLATE_ON_OOM = 2
BALLOON_F_FREE_PAGE_HINT = 3
BALLOON_F_PAGE_POISON = 4
BALLOON_F_REPORTING = 5
"""5.5.3: VIRTIO_BALLOON_F_PAGE_REPORTING, by Linux's name."""
BALLOON_PFN_SHIFT = 12
"""5.5.6: addresses are divided by 4096, whatever the guest's pages are."""
BALLOON_S_SWAP_IN, BALLOON_S_SWAP_OUT, BALLOON_S_MAJFLT, BALLOON_S_MINFLT = 0, 1, 2, 3
BALLOON_S_MEMFREE, BALLOON_S_MEMTOT, BALLOON_S_AVAIL, BALLOON_S_CACHES = 4, 5, 6, 7
BALLOON_S_HTLB_PGALLOC, BALLOON_S_HTLB_PGFAIL = 8, 9
"""5.5.6.4: tags of the statistics."""

# --- Socket device (5.10) ----------------------------------------------------------------------------------------
VSOCK_F_STREAM = 0
VSOCK_F_SEQPACKET = 1
VSOCK_F_NO_IMPLIED_STREAM = 2
VSOCK_HOST_CID = 2
VSOCK_ANY = 0xFFFFFFFF
"""5.10.4: neither a guest's CID, nor, on Linux, a port."""
VSOCK_TYPE_STREAM, VSOCK_TYPE_SEQPACKET = 1, 2
VSOCK_OP_INVALID, VSOCK_OP_REQUEST, VSOCK_OP_RESPONSE, VSOCK_OP_RST, VSOCK_OP_SHUTDOWN = 0, 1, 2, 3, 4
VSOCK_OP_RW, VSOCK_OP_CREDIT_UPDATE, VSOCK_OP_CREDIT_REQUEST = 5, 6, 7
"""5.10.6: operations."""
VSOCK_SHUTDOWN_RECEIVE, VSOCK_SHUTDOWN_SEND = 1, 2
"""5.10.6.5: flags of SHUTDOWN, as masks."""
VSOCK_EVENT_TRANSPORT_RESET = 0

# --- 9P transport (5: a number alone; linux/virtio_9p.h has the rest) --------------------------------------------
P9_F_MOUNT_TAG = 0
