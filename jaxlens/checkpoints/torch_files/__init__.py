"""Reads the files that `torch.save` writes, without torch and without running code from the file."""
