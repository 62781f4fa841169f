"""Files that anybody may have written: ZIP, NPY, NPZ, HDF5, JSON, folders; read within bounds, written whole.

No module here may import PyTorch, unpickle, or know what a scan is. A new container, such as ZIP or HDF5, gets its
reader here; a new scan format begins in ``importer.raw_scan``. HDF5 is read in a process of its own, the sandbox:
``hdf5_process`` starts ``hdf5_child``.
"""
