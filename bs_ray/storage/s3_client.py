"""How S3 is reached: endpoint, region and credentials come from AWS_* variables."""

import os
import threading
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from bs_ray.storage.base import Patience


def s3_client(env: Mapping[str, str], patience: Patience = Patience()) -> Any:
    """A botocore S3 client for the AWS_* variables in `env`, without retries of its own.

    Without AWS_ACCESS_KEY_ID botocore's own chain applies (profile, web identity, instance role).
    """
    import botocore.session
    from botocore.config import Config
    from botocore.handlers import add_expect_header

    endpoint = endpoint_url(env)
    config = Config(
        connect_timeout=patience.connect_s,
        read_timeout=patience.read_s,
        retries={"total_max_attempts": 1},
        max_pool_connections=32,
        # Stores other than Amazon's seldom serve bucket names as host names, and some refuse the
        # newer default checksums. This package's own checksum is in the object's metadata.
        s3={"addressing_style": "path" if endpoint else "auto"},
        request_checksum_calculation=env.get("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required"),
    )
    client = botocore.session.Session().create_client(
        "s3",
        region_name=region(env),
        endpoint_url=endpoint,
        aws_access_key_id=env.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=env.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=env.get("AWS_SESSION_TOKEN"),
        config=config,
    )
    # Stores written in Go answer an empty PUT without the "100 Continue" that botocore waits for,
    # and its next request on that connection then reads the wrong reply and hangs.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    return client


def client_of_environment(patience: Patience) -> Any:
    """This process' client for its AWS_* variables, shared by its threads."""
    environment = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_")))
    with _opening:  # making a client takes a quarter of a second; threads share one
        return _cached_client(os.getpid(), environment, patience)


_opening = threading.Lock()


@lru_cache(maxsize=16)
def _cached_client(pid: int, environment: tuple[tuple[str, str], ...], patience: Patience) -> Any:
    # A client's connections do not survive a fork, and belong to one set of credentials.
    return s3_client(dict(environment), patience)


def endpoint_url(env: Mapping[str, str]) -> str | None:
    """The store's URL, or None for Amazon's own."""
    return env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL")


def region(env: Mapping[str, str]) -> str:
    """The region that requests are signed for."""
    return env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1"


def store_name(env: Mapping[str, str]) -> str:
    """The store's name for messages: host and port, never a user."""
    endpoint = endpoint_url(env)
    return urlsplit(endpoint).netloc.rpartition("@")[2] if endpoint else "Amazon S3"
