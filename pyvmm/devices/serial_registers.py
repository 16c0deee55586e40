"""The registers of the 16550A UART: National Semiconductor's PC16550D data sheet (June 1995), section 8.

Imports registers and hot. Constants carry the data sheet's names; `serial.py` gives them their behaviour.
"""

from __future__ import annotations

from pyvmm.hot import POST, SHADOW
from pyvmm.registers import Field, Register, RegisterMap

IER_ERBFI, IER_ETBEI, IER_ELSI, IER_EDSSI = 0x01, 0x02, 0x04, 0x08
IER_BITS = 0x0F

IIR_NONE, IIR_MODEM_STATUS, IIR_THRE = 0x01, 0x00, 0x02
IIR_DATA, IIR_TIMEOUT, IIR_LINE_STATUS = 0x04, 0x0C, 0x06
IIR_FIFOS_ENABLED = 0xC0

FCR_ENABLE, FCR_CLEAR_RCVR, FCR_CLEAR_XMIT, FCR_DMA_MODE, FCR_TRIGGER = 0x01, 0x02, 0x04, 0x08, 0xC0
TRIGGER_LEVELS = (1, 4, 8, 14)
"""Bytes in the receive FIFO that FCR bits 7-6 ask for (8.5)."""

LCR_WLS, LCR_STB, LCR_PEN, LCR_EPS, LCR_STICK, LCR_BREAK, LCR_DLAB = 0x03, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80

MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
MCR_BITS = 0x1F

LSR_DR, LSR_OE, LSR_PE, LSR_FE, LSR_BI, LSR_THRE, LSR_TEMT, LSR_FIFO_ERROR = (1 << bit for bit in range(8))
LSR_ERRORS = LSR_OE | LSR_PE | LSR_FE | LSR_BI
"""What causes a receiver line status interrupt (8.4, note)."""

MSR_DCTS, MSR_DDSR, MSR_TERI, MSR_DDCD, MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = (1 << bit for bit in range(8))
MSR_DELTAS = MSR_DCTS | MSR_DDSR | MSR_TERI | MSR_DDCD

DIVISOR_LATCH = 1
"""The register bank that DLAB selects."""


REGISTERS = RegisterMap(
    8,
    Register("RBR", 0, "PC16550D table II", access="r", bank=0),
    Register("THR", 0, "PC16550D table II", access="w", bank=0, action=POST),
    Register("DLL", 0, "PC16550D 8.3", bank=DIVISOR_LATCH, reset=1),
    Register(
        "IER",
        1,
        "PC16550D 8.7",
        Field("ERBFI", IER_ERBFI, "received data available and character timeout interrupts"),
        Field("ETBEI", IER_ETBEI, "transmitter holding register empty interrupt"),
        Field("ELSI", IER_ELSI, "receiver line status interrupt"),
        Field("EDSSI", IER_EDSSI, "modem status interrupt"),
        bank=0,
    ),
    Register("DLM", 1, "PC16550D 8.3", bank=DIVISOR_LATCH),
    Register(
        "IIR",
        2,
        "PC16550D 8.6",
        Field(
            "ID",
            0x0F,
            "the pending interrupt of highest priority",
            {
                IIR_NONE: "none",
                IIR_MODEM_STATUS: "modem-status",
                IIR_THRE: "THRE",
                IIR_DATA: "received-data",
                IIR_TIMEOUT: "character-timeout",
                IIR_LINE_STATUS: "line-status",
            },
        ),
        Field("FIFOS", IIR_FIFOS_ENABLED, "FIFOs enabled", {0: "off", 3: "on"}),
        access="r",
        reset=IIR_NONE,
    ),
    Register(
        "FCR",
        2,
        "PC16550D 8.5",
        Field("FIFO_ENABLE", FCR_ENABLE, "FIFO mode"),
        Field("RCVR_RESET", FCR_CLEAR_RCVR, "empty the receive FIFO"),
        Field("XMIT_RESET", FCR_CLEAR_XMIT, "empty the transmit FIFO"),
        Field("DMA_MODE", FCR_DMA_MODE, "meaning of the RXRDY and TXRDY pins, which a PC leaves unconnected"),
        Field(
            "TRIGGER",
            FCR_TRIGGER,
            "receive FIFO trigger level",
            {i: str(n) for i, n in enumerate(TRIGGER_LEVELS)},
        ),
        access="w",
    ),
    Register(
        "LCR",
        3,
        "PC16550D 8.1",
        Field("WLS", LCR_WLS, "word length", {0: "5", 1: "6", 2: "7", 3: "8"}),
        Field("STB", LCR_STB, "more than one stop bit"),
        Field("PEN", LCR_PEN, "parity enable"),
        Field("EPS", LCR_EPS, "even parity"),
        Field("STICK", LCR_STICK, "stick parity"),
        Field("BREAK", LCR_BREAK, "send a break"),
        Field("DLAB", LCR_DLAB, "divisor latch access"),
    ),
    Register(
        "MCR",
        4,
        "PC16550D 8.8",
        Field("DTR", MCR_DTR, "data terminal ready"),
        Field("RTS", MCR_RTS, "request to send"),
        Field("OUT1", MCR_OUT1, "auxiliary output 1"),
        Field("OUT2", MCR_OUT2, "auxiliary output 2: on a PC, connects the interrupt line"),
        Field("LOOP", MCR_LOOP, "local loopback"),
    ),
    Register(
        "LSR",
        5,
        "PC16550D 8.4",
        Field("DR", LSR_DR, "data ready"),
        Field("OE", LSR_OE, "overrun error"),
        Field("PE", LSR_PE, "parity error"),
        Field("FE", LSR_FE, "framing error"),
        Field("BI", LSR_BI, "break interrupt"),
        Field("THRE", LSR_THRE, "transmitter holding register empty"),
        Field("TEMT", LSR_TEMT, "transmitter empty"),
        Field("FIFO_ERROR", LSR_FIFO_ERROR, "an error somewhere in the receive FIFO"),
        access="r",
        reset=LSR_THRE | LSR_TEMT,
        action=SHADOW,
    ),
    Register(
        "MSR",
        6,
        "PC16550D 8.9",
        Field("DCTS", MSR_DCTS, "clear to send has changed"),
        Field("DDSR", MSR_DDSR, "data set ready has changed"),
        Field("TERI", MSR_TERI, "the ring indicator has ended"),
        Field("DDCD", MSR_DDCD, "data carrier detect has changed"),
        Field("CTS", MSR_CTS, "clear to send"),
        Field("DSR", MSR_DSR, "data set ready"),
        Field("RI", MSR_RI, "ring indicator"),
        Field("DCD", MSR_DCD, "data carrier detect"),
        access="r",
        reset=MSR_CTS | MSR_DSR | MSR_DCD,
    ),
    Register("SCR", 7, "PC16550D 8.10"),
)
