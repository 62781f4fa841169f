"""What a release needs: policy, gate, sign-off, the document of the evidence.

Reads reports and evidence; runs nothing.
"""
