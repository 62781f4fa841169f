"""The interface by which ptychodus trains and reconstructs, over what this package has.

What becomes of each of its settings, and of its arrays: <doc-ref type="guide">docs/ptychodus.md</doc-ref>.
"""
