"""What storage raises: every message says got, expected and what to do."""


class StorageError(ValueError):
    """Storage cannot do what was asked. The message says got, expected and what to do."""


class MissingKeyError(StorageError, FileNotFoundError):
    """No object under that key."""


class MissingBucketError(StorageError):
    """No such bucket or folder."""


class AccessError(StorageError):
    """Wrong credentials, or credentials without this right."""


class UnreachableError(StorageError):
    """The store did not answer, or not in time."""


def no_key(where: object) -> MissingKeyError:
    """The error for an object that is not there."""
    return MissingKeyError(f"{where} does not exist. Expected an object there; list what there is.")
