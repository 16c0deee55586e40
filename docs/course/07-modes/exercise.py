"""Lesson 7: descriptors and modes. `pyvmm lesson check 7` looks at both."""


def descriptor(base, limit, access, flags):
    """Exercise `descriptor`: the 8 bytes of a segment descriptor as a number (Intel SDM volume 3A, 3.4.5, figure 3-8).

    `base` has 32 bits. `limit` is the segment's last offset, in bytes: 0xffffffff for 4 GiB. `access` is the byte with
    present, privilege level, S and type; `flags` are the bits D (4) and L (2) and AVL (1) as they stand in bits 55-52.
    Where the limit does not fit into 20 bits, set the flag G (8) and store it in pages, without its lowest 12 bits.

        descriptor(0, 0xffffffff, 0x9b, 4) == 0x00cf9b000000ffff
    """
    ...


def mode(cr0, efer, rflags, cs_l, cs_d):
    """Exercise `mode`: the mode in which a processor with these registers executes (SDM volume 3A, 2.2 and 10.8.5).

    `cs_l` and `cs_d` are 0 or 1, the bits L and D of CS. Returns "real", "virtual-8086", "16-bit protected",
    "32-bit protected", "compatibility" or "64-bit".
    """
    ...
