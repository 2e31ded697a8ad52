"""What S3 clients raise: which errors are worth another attempt, and what to tell the user."""

import os

from bs_ray.storage.errors import (
    AccessError,
    MissingBucketError,
    StorageError,
    UnreachableError,
    no_key,
)
from bs_ray.storage.s3_client import store_name


class DamagedBody(Exception):
    """The body is not what was written; another attempt may help."""


_CREDENTIAL_CODES = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_TRANSIENT_CODES = {
    "SlowDown",
    "RequestTimeout",
    "OperationAborted",
    "ConditionalRequestConflict",
    # The body was damaged or cut on its way.
    "BadDigest",
    "XAmzContentSHA256Mismatch",
    "IncompleteBody",
}


def status_of(error: Exception) -> int:
    """The HTTP status of a reply, 0 where none came."""
    response = getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_transient(error: Exception) -> bool:
    """Whether the same call may succeed a moment later."""
    from botocore import exceptions as aws
    from urllib3.exceptions import HTTPError

    if isinstance(error, aws.ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        return status_of(error) in (408, 429) or status_of(error) >= 500 or code in _TRANSIENT_CODES
    if isinstance(error, aws.SSLError):
        return False  # a wrong certificate stays wrong
    no_reply = (aws.HTTPClientError, aws.ConnectionError, HTTPError, ConnectionError, TimeoutError)
    damaged = (aws.IncompleteReadError, aws.FlexibleChecksumError, DamagedBody)
    return isinstance(error, (*no_reply, *damaged))


def explain(verb: str, name: str, bucket: str, error: Exception, spent_s: float) -> StorageError:
    """A client's exception as a StorageError. No credential is ever part of a message."""
    from botocore.exceptions import ClientError

    where = store_name(os.environ)
    if not isinstance(error, ClientError):
        return _explain_no_reply(verb, name, bucket, where, error, spent_s)
    code, status = error.response.get("Error", {}).get("Code", ""), status_of(error)
    answer = str(status) if code in ("", str(status)) else f"{status} {code}"
    got = f"Cannot {verb} {name}: {where} answered {answer}"
    if status == 404 and (verb != "read" or code == "NoSuchBucket"):
        return MissingBucketError(
            f"{got}. Expected a bucket {bucket!r} there; create it, or correct the URI or "
            "AWS_ENDPOINT_URL."
        )
    if status == 404:
        return no_key(name)
    if status == 412:
        return StorageError(f"{got}: the object changed while it was being read. Run again.")
    # A 400 for a HEAD has no code; at Amazon it usually means that a token has expired.
    if status in (401, 403) or code in _CREDENTIAL_CODES or (status == 400 and answer == "400"):
        return AccessError(
            f"{got}. Expected credentials that may {verb} in bucket {bucket!r}; check "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN (which expires) and the "
            "bucket's policy."
        )
    kind = UnreachableError if status >= 500 else StorageError
    return kind(f"{got} after {spent_s:.1f} s, in bucket {bucket!r}. See the store's log.")


def _explain_no_reply(
    verb: str, name: str, bucket: str, where: str, error: Exception, spent_s: float
) -> StorageError:
    from botocore import exceptions as aws

    if isinstance(error, (aws.NoCredentialsError, aws.PartialCredentialsError)):
        return AccessError(
            f"Cannot {verb} {name}: no credentials for bucket {bucket!r}. Expected "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile, or an instance role)."
        )
    got = f"Cannot {verb} {name}: {type(error).__name__} from {where} after {spent_s:.1f} s"
    if isinstance(error, DamagedBody):
        return StorageError(f"{got}: {error}. The object in bucket {bucket!r} is damaged.")
    if is_transient(error):
        return UnreachableError(
            f"{got}. Expected an answer about bucket {bucket!r}; is AWS_ENDPOINT_URL right, and "
            "the store up?"
        )
    return StorageError(f"{got}: {error}. Check the URI and AWS_ENDPOINT_URL, bucket {bucket!r}.")
