"""A case: network, weights and input; drawn at random, or taken from a scan.

Change it to judge networks of another shape or on other input.
"""
