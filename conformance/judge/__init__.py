"""From what a subject computed to verdicts: error, budget, condition, cause.

Every limit is derived or measured (specs/measured.yaml). A change here needs `make mutation`.
"""
