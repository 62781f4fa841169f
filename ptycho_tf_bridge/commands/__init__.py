"""The command ``ptycho-bridge``: one module a command, with ``add_arguments(parser)`` and ``run(options)``.

No module here may import a framework at its top.
"""
