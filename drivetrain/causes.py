"""What a refusal of a store or a disk means, and what to type then.

Knows the words that stores, credentials and disks use. Asks nobody, and does not know what was being done or why.
"""

import errno
import os
from dataclasses import dataclass

from drivetrain.store import Store, refusal

_EXPORT_KEYS = "Type   export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…   with a pair of keys of {where}"
_ENDPOINT = "Type   --storage s3.endpoint_url=http://HOST:PORT   with the endpoint that answers   curl -i {where}"
# What a store's own word for a refusal means, and what mends it.
REFUSALS = {
    "NoSuchBucket": ("there is no bucket {bucket} at {where}", "Correct {flag}, or type   aws s3 mb s3://{bucket}"),
    "NoSuchKey": ("there is no object {uri}", "Correct {flag}; type   aws s3 ls {folder}/   to see what is there"),
    "InvalidAccessKeyId": ("{where} does not know the access key", _EXPORT_KEYS),
    "SignatureDoesNotMatch": ("the secret key is not the one of the access key", _EXPORT_KEYS),
    "NoCredentialsError": ("no credentials were found", _EXPORT_KEYS),
    "PartialCredentialsError": ("of the credentials only a part was found", _EXPORT_KEYS),
    "ExpiredToken": ("the session's credentials have expired", "Type   aws sso login   or give new keys"),
    "AccessDenied": (
        "these credentials may not {doing} {uri}",
        "Allow s3:ListBucket, s3:GetObject and s3:PutObject on {bucket} to them, or type   "
        "export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…   with others",
    ),
    "RequestTimeTooSkewed": ("this machine's clock is wrong", "Type   sudo timedatectl set-ntp true"),
    "PermanentRedirect": ("the bucket {bucket} lies in another region", "Type   export AWS_REGION=THE_BUCKETS_REGION"),
    "EndpointConnectionError": ("nothing answers at {where}", _ENDPOINT),
    "ConnectTimeoutError": ("nothing answers at {where}", _ENDPOINT),
    "ReadTimeoutError": ("{where} takes the question and does not answer", _ENDPOINT),
    "ConnectionClosedError": ("{where} is no S3 server", _ENDPOINT),
    "ResponseParserError": ("{where} is no S3 server", _ENDPOINT),
    "WebPage": ("{where} answers with a web page, and is no S3 server", _ENDPOINT),
    "ParamValidationError": ("{bucket} can't be the name of a bucket", "Correct {flag}"),
    "ProfileNotFound": ("{said}", "Type   unset AWS_PROFILE   or name one of ~/.aws/config"),
}
REFUSALS |= {
    "404": REFUSALS["NoSuchKey"],
    "403": REFUSALS["AccessDenied"],
    "AllAccessDisabled": REFUSALS["AccessDenied"],
    "AuthorizationHeaderMalformed": REFUSALS["PermanentRedirect"],
    "301": REFUSALS["PermanentRedirect"],
}


@dataclass(frozen=True)
class Asked:
    """What was asked of whom: ``name`` is the setting that gave the ``uri``, ``doing`` the verb, e.g. write to."""

    name: str
    uri: str
    doing: str
    store: Store


def explained(asked: Asked, error: BaseException, said: str) -> tuple[str, str]:
    """The cause of a refusal, and what mends it. ``said`` is the error in one line."""
    uri = asked.uri
    about = {
        "uri": uri, "flag": f"--{asked.name}", "doing": asked.doing, "where": asked.store.where(uri), "said": said,
        "bucket": uri.split("://", 1)[-1].split("/", 1)[0], "folder": uri.rsplit("/", 1)[0], "see": listing_line(uri),
    }  # fmt: skip
    if isinstance(error, OSError):
        found, mend = REFUSALS.get(refusal(error)) or _on_disk(error)
    else:
        found, mend = "{said}", "Correct {flag}; type   {see}   to see what is there"
    return found.format(**about), mend.format(**about)


def silent(asked: Asked, seconds: float) -> tuple[str, str]:
    """The same for a store that did not answer in so many seconds."""
    where = asked.store.where(asked.uri)
    mend = _ENDPOINT.format(where=where) if "://" in asked.uri else f"Correct --{asked.name}"
    return f"no answer within {seconds:.0f} s from {where}", mend


def _on_disk(error: OSError) -> tuple[str, str]:
    """The same for what a local disk says, or a store that says nothing of its own."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "there is no room left for {uri}", "Make room, see   df -h   or correct {flag}"
    if error.errno == errno.EROFS:
        return "the disk of {uri} is mounted read-only", "Mount it so that it can be written, or correct {flag}"
    if isinstance(error, PermissionError):
        return "this user may not {doing} {uri}", "Let it: see   {see}   or correct {flag}"
    if isinstance(error, NotADirectoryError | FileExistsError):
        return "a file stands where {uri} needs a folder", "Correct {flag}; see   {see}"
    if isinstance(error, FileNotFoundError):
        return "there is no {uri}", "Correct {flag}; type   {see}   to see what is there"
    return "{where} refused: {said}", "Correct {flag}; type   {see}   to see what is there"


def listing_line(uri: str) -> str:
    """What to type to see what lies at a uri."""
    return f"aws s3 ls {uri}/" if "://" in uri else f"ls -ld {uri} {os.path.dirname(uri)}"
