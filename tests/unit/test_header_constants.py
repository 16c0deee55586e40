"""Constants typed by hand from data sheets and manuals, against the headers that programs on Linux use."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm import forks
from pyvmm.devices import serial_registers as uart
from tests.support.headers import macros

pytestmark = pytest.mark.needs("gcc")

UART_BITS = {
    "IER": {"ERBFI": "RDI", "ETBEI": "THRI", "ELSI": "RLSI", "EDSSI": "MSI"},
    "IIR": {
        "NONE": "NO_INT",
        "MODEM_STATUS": "MSI",
        "THRE": "THRI",
        "DATA": "RDI",
        "TIMEOUT": "RX_TIMEOUT",
        "LINE_STATUS": "RLSI",
    },
    "FCR": {
        "ENABLE": "ENABLE_FIFO",
        "CLEAR_RCVR": "CLEAR_RCVR",
        "CLEAR_XMIT": "CLEAR_XMIT",
        "DMA_MODE": "DMA_SELECT",
        "TRIGGER": "TRIGGER_MASK",
    },
    "LCR": {
        "STB": "STOP",
        "PEN": "PARITY",
        "EPS": "EPAR",
        "STICK": "SPAR",
        "BREAK": "SBC",
        "DLAB": "DLAB",
    },
    "MCR": {"DTR": "DTR", "RTS": "RTS", "OUT1": "OUT1", "OUT2": "OUT2", "LOOP": "LOOP"},
    "LSR": {
        "DR": "DR",
        "OE": "OE",
        "PE": "PE",
        "FE": "FE",
        "BI": "BI",
        "THRE": "THRE",
        "TEMT": "TEMT",
        "FIFO_ERROR": "FIFOE",
        "ERRORS": "BRK_ERROR_BITS",
    },
    "MSR": {
        "DCTS": "DCTS",
        "DDSR": "DDSR",
        "TERI": "TERI",
        "DDCD": "DDCD",
        "CTS": "CTS",
        "DSR": "DSR",
        "RI": "RI",
        "DCD": "DCD",
        "DELTAS": "ANY_DELTA",
    },
}
"""The data sheet's names of the bits, and Linux's."""

UART_OFFSETS = {
    "RBR": "RX",
    "THR": "TX",
    "DLL": "DLL",
    "IER": "IER",
    "DLM": "DLM",
    "IIR": "IIR",
    "FCR": "FCR",
    "LCR": "LCR",
    "MCR": "MCR",
    "LSR": "LSR",
    "MSR": "MSR",
    "SCR": "SCR",
}


def test_bits_of_the_uart(tmp_path: Path) -> None:
    pairs = [(f"{reg}_{ours}", f"UART_{reg}_{its}") for reg, bits in UART_BITS.items() for ours, its in bits.items()]
    values = macros(tmp_path, "linux/serial_reg.h", [its for _, its in pairs])
    assert {ours: getattr(uart, ours) for ours, _ in pairs} == {ours: values[its] for ours, its in pairs}
    named = {name for name in vars(uart) if name[:4] in {f"{register}_" for register in UART_BITS}}
    assert named - {ours for ours, _ in pairs} == {"IER_BITS", "IIR_FIFOS_ENABLED", "LCR_WLS", "MCR_BITS"}


def test_offsets_of_the_uart(tmp_path: Path) -> None:
    values = macros(tmp_path, "linux/serial_reg.h", [f"UART_{its}" for its in UART_OFFSETS.values()])
    ours = {register.name: register.offset for register in uart.REGISTERS}
    assert ours == {name: values[f"UART_{its}"] for name, its in UART_OFFSETS.items()}


def test_flags_of_mmap(tmp_path: Path) -> None:
    names = ["MAP_NORESERVE", "MAP_FIXED_NOREPLACE"]
    assert macros(tmp_path, "sys/mman.h", names) == {name: getattr(forks, name) for name in names}
