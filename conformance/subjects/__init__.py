"""Who is judged or asked: PyTorch, live Keras, the reference's package; variants and precision.

The only room that knows a framework.
"""
