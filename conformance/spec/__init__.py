"""The clauses of specs/*.yaml as values, and their comparison with the reference's own dataclasses.

Change it when a specification file gets another form; it imports nothing of the suite but errors.
"""
