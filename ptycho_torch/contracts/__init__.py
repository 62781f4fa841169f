"""The contracts of ``specs/*.yaml`` as values: data, settings, and the names that settings have elsewhere.

Change a clause in ``specs`` first. No module here may import PyTorch: paths and settings are checked before it loads.
"""
