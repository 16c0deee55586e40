"""Bits of the processor's own registers: the one home of those that code computes with.

Imports nothing. Follows the Intel SDM: RFLAGS volume 1, 3.4.3; CR0, CR3 and CR4 volume 3A, 2.5; EFER volume 3A, 2.2.1;
DR6 volume 3B, 18.2.3. Names for reading aloud are in `pyvmm.debug.bits`.
"""

from __future__ import annotations

CR0_PE = 1 << 0
"""Protection enable."""
CR0_MP = 1 << 1
"""Monitor coprocessor: WAIT obeys CR0.TS."""
CR0_EM = 1 << 2
"""Emulation: every x87 and SSE instruction faults."""
CR0_TS = 1 << 3
CR0_ET = 1 << 4
"""Hard-wired to 1 in every processor that KVM runs on."""
CR0_NE = 1 << 5
"""x87 errors are exceptions, not IRQ 13."""
CR0_WP = 1 << 16
"""Write protection holds for supervisor code too."""
CR0_AM = 1 << 18
CR0_NW = 1 << 29
CR0_CD = 1 << 30
CR0_PG = 1 << 31

CR3_LAM = 3 << 61
"""Linear address masking of user addresses: bits of a pointer are ignored."""

CR4_TSD = 1 << 2
"""The time stamp counter is for ring 0 alone."""
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
CR4_PGE = 1 << 7
CR4_PCE = 1 << 8
CR4_OSFXSR = 1 << 9
"""SSE instructions are allowed. Bit 9; its neighbour 8 lets user code read performance counters."""
CR4_OSXMMEXCPT = 1 << 10
"""SSE floating-point errors are #XM rather than #UD."""
CR4_LA57 = 1 << 12
CR4_PCIDE = 1 << 17
CR4_SMEP = 1 << 20
CR4_SMAP = 1 << 21
"""Supervisor code may not touch pages of user code, unless RFLAGS.AC is set."""
PROTECTION_KEYS = 1 << 22 | 1 << 24
"""CR4.PKE and CR4.PKS: a page's key has a say in who may access it."""
LINEAR_MASKING = 1 << 28
"""CR4.LAM_SUP: bits of supervisor addresses are ignored."""

EFER_SCE = 1 << 0
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
EFER_NXE = 1 << 11

RFLAGS_RESERVED = 1 << 1
"""Always 1. With nothing else set interrupts are off."""
RFLAGS_ZF = 1 << 6
RFLAGS_STATUS = 0x8D5
"""CF, PF, AF, ZF, SF and OF."""
RFLAGS_TF = 1 << 8
RFLAGS_IF = 1 << 9
RFLAGS_RF = 1 << 16
RFLAGS_VM = 1 << 17
"""Virtual-8086 mode."""
RFLAGS_AC = 1 << 18
RFLAGS_MUST_BE_0 = 0xFFFF_FFFF_FFC0_8028

DR6_BS = 1 << 14
"""A debug exception's cause is a single step."""
