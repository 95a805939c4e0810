"""The errors a user can meet. Each message says what was got, what is legal and what to type.

Everything derived from :class:`UserError` is the user's to mend: the launch scripts print its message alone (no traceback)
and exit with code 2.
"""


class UserError(Exception):
    """Base of every error that a change of recipe, data or command line mends."""


class ConfigError(UserError):
    """A recipe, an override or a ds_config is not legal."""


class CapacityError(ConfigError):
    """A run does not fit into the memory of a GPU or of its host."""


class DataError(UserError):
    """Shards, an index, or a source file cannot be used."""


class ModelError(UserError):
    """A model folder or checkpoint does not fit the family that was asked to load it."""


class CheckpointError(UserError):
    """A training checkpoint is missing, incomplete, or belongs to another run."""


class DivergenceError(UserError):
    """A loss stopped being finite; nothing was updated with it."""
