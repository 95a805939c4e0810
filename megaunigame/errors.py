"""The errors a user can meet. Each message says what was got, what is legal and what to type.

For a :class:`UserError` the launch scripts print the message alone (no traceback) and exit with code 2.
"""


class UserError(Exception):
    """Errors the user can fix by changing the recipe, the data or the command line."""


class ConfigError(UserError):
    """A recipe, an override or a ds_config is not legal."""


class CapacityError(ConfigError):
    """A run does not fit into the memory of a GPU or of its host."""


class DataError(UserError):
    """Shards, an index, or a source file cannot be used."""


class LostShard(DataError):
    """A shard cannot be reached now: its file is gone, or its file system or server does not answer. It may come back."""

    def __init__(self, message: str, shard: str = ""):
        """`shard`: its file name."""
        super().__init__(message)
        self.shard = shard


class LoaderError(UserError):
    """A process that loads data has died."""


class ModelError(UserError):
    """A model folder or checkpoint does not fit the family that was asked to load it."""


class CheckpointError(UserError):
    """A training checkpoint is missing, incomplete, or belongs to another run."""


class DivergenceError(UserError):
    """Too many updates were skipped because a loss or the gradient was not finite or a spike, or a weight is not finite; no
    update was made with it."""


class Interrupted(Exception):
    """A signal ended the run. Nothing is wrong: the same command goes on. Raised on all ranks together."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: schedulers start such a job again."""


class LockstepError(UserError):
    """The ranks are about to make different steps."""


class LostRankError(Exception):
    """Another rank is gone. Nothing here is wrong: exit code 1, and the same command goes on."""
