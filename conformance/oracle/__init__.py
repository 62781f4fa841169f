"""The truth in float64 NumPy: network, stages, losses, data, optimisers, training.

Written from docs/reference_model.md; imports NumPy, SciPy and itself only, and nothing that it judges.
"""
