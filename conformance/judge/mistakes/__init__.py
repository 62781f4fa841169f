"""Mistakes that people make, as arrays: one table for any array, and those of single stages.

Add a mistake here to have reports name it.
"""
