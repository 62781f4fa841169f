"""The state of a training after each update, its curves, and runs that are compared.

PyTorch is not imported here; `subjects` trains.
"""
