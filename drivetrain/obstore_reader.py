"""Many small objects from S3 at a fraction of the CPU: obstore, which is Rust's object_store.

Knows how s3fs's settings are said to obstore, and when they can't be. Does not decide anything: s3fs is asked again
for whatever obstore can't read, and its answer counts. A GET by s3fs is Python's work (benchmarks/gets.md), done on
the core that the network needs. Not obstore's own filesystem for fsspec: it takes a key for a URL and reads the object
``a`` for the key ``a?b``.
"""

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from fsspec.asyn import sync

# With any other option set, s3fs reads: versions, encryption with a customer's key, who pays, certificates.
KNOWN_OPTIONS = frozenset(["endpoint_url", "key", "secret", "token", "username", "password", "use_listings_cache"])
KNOWN_CLIENT_OPTIONS = frozenset(["region_name", "endpoint_url"])
KNOWN_CONFIG = frozenset(["connect_timeout", "read_timeout", "retries", "max_pool_connections"])
# Credentials that a role gives change; botocore renews them, and is asked for them this often. obstore takes no
# credentials for good that expire within five minutes: it would ask for those before every request.
ASK_AGAIN, TOO_SHORT = timedelta(minutes=5), timedelta(minutes=5)
# After so many in a row that s3fs could read, obstore is not asked any more: it does not get on with this store.
MOST_REFUSALS = 16
# Without a setting of s3fs's.
TIMEOUT_SECONDS = 20.0


class ObstoreReader:
    """Reads objects of one bucket. Make one with `reader_of`."""

    def __init__(self, bucket: Any) -> None:
        self._bucket, self._refusals = bucket, 0

    def read(self, key: str) -> tuple[bytes, str] | None:
        """All bytes of an object and its etag, or None when obstore can't read it, for whatever reason."""
        if self._refusals >= MOST_REFUSALS:
            return None
        try:
            found = self._bucket.get(key)
            data, etag = found.bytes().to_bytes(), str(found.meta["e_tag"] or "").strip('"')
        except FileNotFoundError:
            return None
        except Exception:
            # Any: its errors, and keys that it does not take (empty segments, control characters).
            return None
        self._refusals = 0
        return data, etag

    def outdone(self) -> None:
        """Note that s3fs could read what obstore could not: it was not the store."""
        self._refusals += 1


@cache
def reader_of(s3fs: Any, bucket: str) -> ObstoreReader | None:
    """A reader that asks whom an S3FileSystem of s3fs asks, with its credentials. None when that can't be said."""
    if not _plain(s3fs.storage_options):
        return None
    try:
        from obstore.store import S3Store

        s3fs.connect()
        meta = s3fs.s3.meta
        silence = timedelta(seconds=s3fs.config_kwargs.get("read_timeout", TIMEOUT_SECONDS))
        store = S3Store(
            bucket,
            endpoint=meta.endpoint_url,
            region=meta.region_name,
            virtual_hosted_style_request=False,
            credential_provider=_credentials(s3fs),
            # One try and little patience: whatever is not simple is for s3fs, which tries again and tells what it met.
            retry_config={"max_retries": 0},
            client_options={"allow_http": meta.endpoint_url.startswith("http://"), "timeout": silence},
        )
    except Exception:
        return None
    return ObstoreReader(store)


def delta_options(s3fs: Any) -> dict[str, str]:
    """What an S3FileSystem of s3fs asks, as options of the deltalake package, which is built on object_store too.

    With credentials: they live as long as those of a role do, so ask anew for each use.
    """
    s3fs.connect()
    meta = s3fs.s3.meta
    options = {
        "aws_endpoint_url": meta.endpoint_url,
        "aws_region": meta.region_name or "us-east-1",
        "aws_allow_http": str(meta.endpoint_url.startswith("http://")).lower(),
        "aws_virtual_hosted_style_request": "false",
        # A commit is a put that fails where another writer was first.
        "aws_conditional_put": "etag",
    }
    now = _credentials(s3fs)()
    names = {"aws_access_key_id": "access_key_id", "aws_secret_access_key": "secret_access_key"}
    options |= {name: now[known] for name, known in names.items()}
    return options | ({"aws_session_token": now["token"]} if now["token"] else {})


def _credentials(s3fs: Any) -> Any:
    """What tells obstore the credentials of the moment: those given to s3fs, else those that botocore finds."""
    given = s3fs.key and s3fs.secret
    found = None if given else sync(s3fs.loop, s3fs.session.get_credentials)
    if not given and found is None:
        raise LookupError("no credentials")

    def current() -> dict[str, Any]:
        now = found and sync(s3fs.loop, found.get_frozen_credentials)
        return {
            "access_key_id": now.access_key if now else s3fs.key,
            "secret_access_key": now.secret_key if now else s3fs.secret,
            "token": now.token if now else s3fs.token,
            "expires_at": datetime.now(UTC) + ASK_AGAIN + TOO_SHORT,
        }

    return current


def _plain(options: dict[str, Any]) -> bool:
    return (
        options.keys() <= KNOWN_OPTIONS | {"client_kwargs", "config_kwargs"}
        and options.get("client_kwargs", {}).keys() <= KNOWN_CLIENT_OPTIONS
        and options.get("config_kwargs", {}).keys() <= KNOWN_CONFIG
    )
