"""What the reference does outside the network: configuration, bridge, data, single operations, optimiser.

A check is a function that computes what is expected in plain NumPy, asks the product for the same, and returns both; it
judges nothing and knows no pytest. ``table`` lists the checks with their clauses; modules in here know neither the
report nor the judgement of the network.
"""
