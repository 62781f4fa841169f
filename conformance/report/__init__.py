"""Results of a run as JSON, text and page, and the difference of two.

Shows verdicts; decides nothing.
"""
