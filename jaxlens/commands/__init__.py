"""The subcommands of `jaxlens`, one in each file: its arguments, a call or two of the library, and what is shown."""
