"""Devices recorded one by one, with all that comes to them from outside, and replayed against their models without KVM.

Imports reader, writer and the device models.
"""
