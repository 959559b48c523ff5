"""Errors for what a user gave: one clear line, no traceback at the command line."""


class InputError(ValueError):
    """Something given from outside (path, option, file content) is wrong; the message says what and where."""


class UsageError(InputError):
    """A command line lacks something, or says two things that exclude each other."""


class ConfigError(InputError):
    """A configuration file, key or value is wrong."""


class DatasetError(InputError):
    """A data set, image or annotation is missing or wrong."""


class CheckpointError(InputError):
    """A checkpoint is missing, unreadable, unsafe or belongs to another model."""


class NonFiniteError(RuntimeError):
    """A loss, cost or gradient became infinite or not a number."""
