"""What storage raises."""


class StorageError(ValueError):
    """A call to a store failed. The message says got, expected and what to do."""


class MissingKeyError(StorageError, FileNotFoundError):
    """There is no object under the key."""


class MissingBucketError(StorageError):
    """There is no such bucket or folder."""


class AccessError(StorageError):
    """The credentials are wrong, or lack the right to do this."""


class UnreachableError(StorageError):
    """The store did not answer, or not in time."""


def no_key(where: object) -> MissingKeyError:
    """The error for an object that does not exist."""
    return MissingKeyError(f"{where} does not exist. Expected an object there; list what there is.")
