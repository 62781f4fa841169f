"""Archives of the reference, read without TensorFlow and without unpickling: weights, graph, saved parameters.

Every file is untrusted: sizes are bounded, paths stay inside, HDF5 is opened in a process of its own.
"""
