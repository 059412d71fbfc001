"""The subcommands of `jaxlens`. Each file defines the arguments of a subcommand and the function that runs it."""
