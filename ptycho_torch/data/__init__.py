"""Scans that keep the contract: patterns, positions, probe, groups, and the memory map that holds them.

What a reference also computes (groups, normalisation, offsets) is judged by ``pytest conformance``: change it with
its clause.
"""
