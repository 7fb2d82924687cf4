"""Who may use a Ray cluster's dashboard, asked as a stranger would: over HTTP and without a token.

Whoever may use the dashboard's job API runs commands on the cluster, with the cluster's credentials (CVE-2023-48022).
Knows HTTP. Imports no Ray, and never sends a token.
"""

import http.client
import ipaddress
import socket
import urllib.error
import urllib.request
from typing import Literal
from urllib.parse import urlsplit

# open: it lists its jobs to anyone. closed: it asks who is there. silent: nobody answers. other: no Ray dashboard.
Door = Literal["open", "closed", "silent", "other"]

OPEN_MEANS = "whoever reaches that port runs commands on the cluster, with its credentials for your buckets"


def door(url: str, seconds: float) -> tuple[Door, str]:
    """How the job API at a dashboard's url answers someone without a token, and what it said."""
    try:
        with urllib.request.urlopen(f"{url}/api/jobs/", timeout=seconds) as answer:
            kind = answer.headers.get_content_type()
            if kind == "application/json" and answer.read(1) == b"[":
                return "open", "a list of jobs"
            return "other", f"{kind} where jobs are listed"
    except urllib.error.HTTPError as error:
        error.close()
        said = f"HTTP {error.code}"
        return ("closed", said) if error.code in (401, 403) else ("other", said)
    except http.client.HTTPException as error:
        return "other", f"no HTTP ({type(error).__name__})"
    except OSError as error:
        return "silent", str(getattr(error, "reason", "") or error)


def is_loopback(url: str) -> bool:
    """Whether every address of the url's host is one that only this machine reaches."""
    try:
        found = socket.getaddrinfo(urlsplit(url).hostname, None)
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(str(each[4][0]).partition("%")[0]).is_loopback for each in found)


def open_to_others(url: str, seconds: float) -> bool:
    """Whether others than this machine's processes find the dashboard's job API without being asked for a token."""
    return not is_loopback(url) and door(url, seconds)[0] == "open"
