"""Published models: their short names, their training checkpoints, and the files of a repository that belong to one."""
