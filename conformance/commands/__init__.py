"""One module for each command of `python -m conformance`.

Arguments, checks of paths and messages; the work is elsewhere.
"""
