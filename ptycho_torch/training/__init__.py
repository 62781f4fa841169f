"""What keeps a training: Lightning and data module, checkpoints, callbacks, run state, signals, tracking, progress.

A resumed run equals one that was never interrupted, bit by bit: what changes the state goes into the checkpoint, too.
"""
