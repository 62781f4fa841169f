"""The conformance suite: is the PyTorch network the TensorFlow network, layer by layer?

Run it as ``pytest conformance`` in a checkout, or ``pytest --pyargs conformance`` once installed.
"""
