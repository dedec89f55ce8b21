"""Whether a server answers."""

import urllib.request

TIMEOUT_S = 5.0


def answers(url: str) -> bool:
    """Whether a request for `url` gets the status 200."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
