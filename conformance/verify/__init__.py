"""Is a converted model the archived one? Verdict, certificate, recorded predictions.

Used by `python -m conformance verify` and `ptycho-bridge migrate`.
"""
