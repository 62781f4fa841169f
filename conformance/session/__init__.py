"""One run: which cases, each computed once and kept; draws and studies over many cases.

Pytest's hooks are in `conformance.plugin`.
"""
