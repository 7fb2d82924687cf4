"""Posts a line to a chat's webhook.

Knows HTTP and patience. Does not know what the line says. A webhook's url is a secret, since whoever has it can post:
it stands in no message, no log and no error. A night never fails on its webhook: what went wrong comes back as a note.
"""

import logging
import threading
import time

import requests

TRIES = 3
ANSWER_SECONDS = 10.0
PAUSE_SECONDS = 2.0
# A server that answers drop by drop is never late: the whole of it has an end too.
ALL_SECONDS = 60.0


def post(webhook: str, text: str) -> str | None:
    """Post a text in Slack's form, {"text": …}, at most three times.

    Returns None when the other side took it, else a note in plain words, without the url.
    """
    said: list[str | None] = []
    # A daemon: a job that is done does not wait for a line that hangs.
    posting = threading.Thread(target=lambda: said.append(_tried(webhook, text)), daemon=True)
    posting.start()
    posting.join(ALL_SECONDS)
    problem = said[0] if said else f"no answer within {ALL_SECONDS:.0f} s"
    return f"The webhook did not take the message: {problem}." if problem else None


def _tried(webhook: str, text: str) -> str | None:
    """What the last try came to, None if it went well."""
    if not webhook.startswith(("https://", "http://")):
        return "its address begins neither with https:// nor with http://"
    # urllib3 logs the path of each request, in which Slack's token stands.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.WARNING)
    problem = None
    for number in range(TRIES):
        if number:
            time.sleep(PAUSE_SECONDS * number)
        problem, again = _try(webhook, text)
        if not again:
            break
    return problem


def _try(webhook: str, text: str) -> tuple[str | None, bool]:
    """What one try came to, and whether another one may help."""
    try:
        # Not to wherever it redirects: the text is for this address.
        answer = requests.post(webhook, json={"text": text}, timeout=ANSWER_SECONDS, allow_redirects=False, stream=True)
        answer.close()
    except requests.Timeout:
        return f"no answer within {ANSWER_SECONDS:.0f} s", True
    except requests.ConnectionError:
        return "it could not be reached, or broke off", True
    except Exception as error:
        # Whatever it is, its text may hold the url.
        return f"its address can't be used ({type(error).__name__})", False
    if 200 <= answer.status_code < 300:
        return None, False
    # Too many requests, or their own trouble; anything else is an answer for good.
    return f"it answered {answer.status_code}", answer.status_code == 429 or answer.status_code >= 500
