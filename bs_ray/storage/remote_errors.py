"""What fsspec's file systems raise, told apart without importing the libraries they stand on."""

from bs_ray.storage.errors import (
    AccessError,
    MissingBucketError,
    StorageError,
    UnreachableError,
    no_key,
)

# Classes by name, base classes included: of Python, aiohttp, requests, azure-core, google-auth.
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
# Where a module and its package have different names.
_PACKAGES = {"smbclient": "smbprotocol", "libarchive": "libarchive-c"}


def explain(verb: str, name: str, raised: Exception) -> StorageError:
    """Turn a file system's exception into ours."""
    error = _reason(raised)
    status, kinds = _status(error), {kind.__name__ for kind in type(error).__mro__}
    protocol = name.partition("://")[0]
    said = (str(error).splitlines() or [""])[0][:200]
    got = f"Cannot {verb} {name}: {type(error).__name__}: {said}".rstrip(": .")
    if status == 404 or isinstance(error, FileNotFoundError):
        if verb == "read":
            return no_key(name)
        return MissingBucketError(f"{got}. Expected a bucket or folder; create it, or mend the URI")
    # gcsfs tells a 403 in words only.
    if status in (401, 403) or kinds & (_REFUSED - _UNREACHABLE) or said.startswith("Forbidden"):
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
    """What lies behind fsspec's FileNotFoundError: over HTTP it stands for any failure."""
    cause = error.__cause__
    return cause if cause and (isinstance(cause, OSError) or _status(cause)) else error


def _status(error: BaseException) -> int:
    """The HTTP status: of aiohttp, azure-core and gcsfs. 0 where there is none."""
    for name in ("status", "status_code", "code"):
        value = str(getattr(error, name, None))
        if value.isdigit():
            return int(value)
    return 0
