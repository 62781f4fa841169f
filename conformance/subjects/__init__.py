"""Who is judged or asked: PyTorch, live Keras, the reference's package; variants and precision.

The candidate and the references are run here; other rooms get arrays.
"""
