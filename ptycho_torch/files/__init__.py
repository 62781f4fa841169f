"""Files that anybody may have written: ZIP, NPY, NPZ, HDF5, JSON, folders; read within bounds, written whole.

No module here may import PyTorch, unpickle, or know what a scan is. A new format gets its reader here, and its
meaning in ``importer``.
"""
