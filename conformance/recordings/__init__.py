"""What a reference computed, as files: how they are made, read, replayed and calibrated; the files themselves.

A recording needs no TensorFlow to be judged.
"""
