"""Between TensorFlow and PyTorch: layouts, weights and our own Keras model of the reference.

Importing this package, or any module of it, needs no TensorFlow; only ``backend`` imports it, when asked.
"""
