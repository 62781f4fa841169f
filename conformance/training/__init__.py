"""The state of a training after each update, its curves, and runs that are compared.

No framework is imported; `subjects` trains.
"""
