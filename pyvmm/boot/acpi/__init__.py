"""ACPI tables: what a kernel is told of the machine that it cannot find out by asking.

Written by us from the ACPI specification 6.5, checked with the reference disassembler in the tests. `aml` encodes the
byte code, `dsdt` describes the devices with it, `tables` holds the fixed tables and puts all of them together.
"""
