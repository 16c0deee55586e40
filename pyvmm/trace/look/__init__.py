"""Looking at a trace: its summary, a browser in the terminal, a page of HTML.

Imports what reads a trace (reader, decode, naming) and fields, nothing that records one.
"""
