"""The training loop and what a machine brings to it: precision, processes, checkpoints."""
