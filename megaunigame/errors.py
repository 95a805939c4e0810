"""The errors a user can meet. Each message says what was got, what is legal and what to type.

For a :class:`UserError` the launch scripts print the message alone (no traceback) and exit with code 2; for a
:class:`TransientError`, also one that is both, with code 1.
"""

import errno


class UserError(Exception):
    """Errors the user can fix by changing the recipe, the data or the command line."""


class TransientError(Exception):
    """Recipe, data and command are right as far as is known: the same command may succeed."""


class ConfigError(UserError):
    """A recipe, an override or a ds_config is not legal."""


class CapacityError(ConfigError):
    """A run does not fit into the memory of a GPU or of its host."""


class DataError(UserError):
    """Shards, an index, or a source file cannot be used."""


class LostShard(DataError, TransientError):
    """A shard cannot be reached now: its file is gone, or its file system or server does not answer. It may come back."""

    def __init__(self, message: str, shard: str = ""):
        """`shard`: its file name."""
        super().__init__(message)
        self.shard = shard


class MissingShard(DataError, TransientError):
    """A lost shard has not come back in time, and the run does not go on without it."""


class LoaderError(TransientError):
    """A process that loads data has died."""


class MeetingError(TransientError):
    """The ranks do not come together: some have not started, or a run that ends still has their port."""


class ModelError(UserError):
    """A model folder or checkpoint does not fit the family that was asked to load it."""


class TransientModelError(ModelError, TransientError):
    """The file system of a model answered with an error that may pass."""


class CheckpointError(UserError):
    """A training checkpoint is missing, incomplete, or belongs to another run."""


class TransientCheckpointError(CheckpointError, TransientError):
    """The file system of a checkpoint answered with an error that may pass: nothing is known to be damaged."""


class DivergenceError(UserError):
    """Too many updates were skipped because a loss or the gradient was not finite or a spike, or a weight is not finite (no
    update was made with it), or the gradient was 0 for too many steps."""


class HubError(TransientError):
    """The Hugging Face Hub does not answer, or answers with an error of its own."""


class Interrupted(Exception):
    """A signal ended the run. Nothing is wrong: the same command goes on. Raised on all ranks together."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: schedulers start such a job again."""


class LockstepError(UserError):
    """The ranks are about to make different steps."""


class LostRankError(TransientError):
    """Another rank is gone."""


def is_full_disk(error: BaseException) -> bool:
    """Whether there is no room, or no quota: the user has to make some."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
