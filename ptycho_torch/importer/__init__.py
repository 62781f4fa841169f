"""Scans as other programs write them: CXI, NeXus, Eiger, MATLAB; units, masks, axes; what looks wrong in a scan.

A new layout of a file is added in ``beamline_search`` (patterns), ``beamline_positions``, ``beamline_geometry`` or
``beamline_images``; a new hint in ``hints``, for every command at once. Nothing is dropped in silence.
"""
