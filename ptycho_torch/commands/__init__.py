"""The command ``ptycho-torch``: one module a command, with ``add_arguments(parser)`` and ``run(options)``.

No module here may import PyTorch at its top: ``--help`` and a wrong path answer at once. Work is done by the public
modules.
"""
