"""The package's own exceptions: one for each thing a caller may want to catch."""


class CheckpointError(ValueError):
    """A checkpoint, its config or its tokenizer cannot be read as it stands; nothing was loaded."""


class HookError(ValueError):
    """A hook names nothing, or returned something other than what it was given."""


class ActivationNotFound(KeyError):
    """A cache was asked for an activation that it does not hold."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])
