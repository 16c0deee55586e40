"""Traces: what a VM did, exit by exit, recorded, read, shown and replayed.

recorder.py writes while a VM runs, spool.py is what it writes, reader.py and writer.py are the formats that people and
other programs read, decode.py says which register an access means, narrator.py and explain.py say it in words. What is
made of a finished trace is in look/, devices that are replayed in devices/. docs/trace.md has the schema of a record.
"""
