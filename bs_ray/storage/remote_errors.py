"""What fsspec's file systems raise, told apart without importing their libraries."""

from bs_ray.storage.errors import (
    AccessError,
    MissingBucketError,
    StorageError,
    UnreachableError,
    no_key,
)

# Names of exception classes of Python, aiohttp, requests, azure-core and google-auth; subclasses
# count as well.
_UNREACHABLE = {
    "ConnectionError",
    "TimeoutError",
    "gaierror",
    "ClientConnectionError",
    "ClientPayloadError",
    "ServiceRequestError",
    "ServiceResponseError",
    "TransportError",
}
_REFUSED = {"PermissionError", "ClientAuthenticationError", "GoogleAuthError"}
_CREDENTIALS = {
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "abfs": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "abfss": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
# Module -> its package, where their names differ.
_PACKAGES = {"smbclient": "smbprotocol", "libarchive": "libarchive-c"}


def explain(verb: str, name: str, raised: Exception) -> StorageError:
    """A file system's exception as a StorageError."""
    error = _reason(raised)
    status, kinds = _status(error), {kind.__name__ for kind in type(error).__mro__}
    protocol = name.partition("://")[0]
    words = (str(error).splitlines() or [""])[0][:200]
    got = f"Cannot {verb} {name}: {type(error).__name__}: {words}".rstrip(": .")
    if status == 404 or isinstance(error, FileNotFoundError):
        if verb == "read":
            return no_key(name)
        return MissingBucketError(
            f"{got}. Expected a bucket or folder; create it, or correct the URI"
        )
    # gcsfs reports a 403 in words alone.
    if status in (401, 403) or kinds & (_REFUSED - _UNREACHABLE) or words.startswith("Forbidden"):
        where = _CREDENTIALS.get(protocol, f"FSSPEC_{protocol.upper()}_<OPTION>")
        return AccessError(f"{got}. Expected credentials that may {verb} there; check {where}")
    if status in (408, 429) or status >= 500 or kinds & _UNREACHABLE:
        return UnreachableError(f"{got}. Expected an answer; is the URI right, and the store up?")
    return StorageError(f"{got}. Check the URI and the options of {protocol}://")


def missing_package(uri: str, error: ImportError) -> StorageError:
    """The error for a protocol whose library is not installed."""
    absent = getattr(error.__cause__, "name", None) or "its package"
    package = _PACKAGES.get(absent.partition(".")[0], absent.partition(".")[0])
    return StorageError(
        f"Cannot open {uri}: got no {absent} here ({error}). Expected it on every machine of the "
        f"job: pip install {package}"
    )


def _reason(error: BaseException) -> BaseException:
    """The cause of a FileNotFoundError, which fsspec raises for any failure over HTTP."""
    cause = error.__cause__
    return cause if cause and (isinstance(cause, OSError) or _status(cause)) else error


def _status(error: BaseException) -> int:
    """The HTTP status in an exception of aiohttp, azure-core or gcsfs; 0 where there is none."""
    for name in ("status", "status_code", "code"):
        value = str(getattr(error, name, None))
        if value.isdigit():
            return int(value)
    return 0
