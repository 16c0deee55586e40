"""Traces: what a VM did, exit by exit, recorded, read, shown and replayed.

recorder.py writes while a VM runs, spool.py is what it writes, reader.py and writer.py are the formats that people and
other programs read, decode.py says which register an access means. docs/trace.md has the schema of a record.
"""
