"""Where a number comes from: digests of sources, the machine, evidence files, which test proves which clause.

Change it when evidence has to record something new.
"""
