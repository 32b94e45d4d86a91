"""What a message of a log says of somebody's login: by sshd, PAM, su and sudo, and the address a web server names."""

from __future__ import annotations

import re

LONGEST = 1024  # characters that are looked at: some of these patterns take the square of it

HINT = re.compile(r"(?i)failed \S+ for|accepted \S+ for|invalid user|authentication fail|session \w+ for|COMMAND=")
# A name may hold anything, " from " too, as whoever tries to log in chooses it: the last address counts.
FORMS = [
    (event, re.compile(form))
    for event, form in (
        ("failed", r"Failed \S+ for (?:invalid user )?(?P<user>.*) from (?P<source>\S+) port \d+"),
        ("accepted", r"Accepted \S+ for (?P<user>.*) from (?P<source>\S+) port \d+"),
        ("invalid user", r"[Ii]nvalid user (?P<user>.*) from (?P<source>\S+)(?: port \d+)?$"),
        ("invalid user", r"[Ii]nvalid user (?P<user>.*?)(?: \[preauth\])?$"),
        ("failed", r"authentication failures?;.*?\brhost=(?P<source>\S*)(?:\s+user=(?P<user>.*?))?\s*$"),
        ("session opened", r"session opened for user (?P<user>[^\s(]+)"),
        ("session closed", r"session closed for user (?P<user>[^\s(]+)"),
        ("failed", r"^\s*(?P<user>\S+) : .*incorrect password attempts? ;.*COMMAND="),
        ("failed", r"^\s*(?P<user>\S+) : (?:user|command) (?:NOT|not) .*COMMAND="),
        ("sudo", r"^\s*(?P<user>\S+) : .*TTY=.*COMMAND="),
    )
]
CLIENT = re.compile(r"\[client (?P<source>[^\s\]]+?)(?::\d+)?\]")


def login(message: str) -> tuple[str | None, str | None, str | None]:
    """What happened, to whose account, and from where, of a message's one line; None for what it does not say.

    >>> login("Failed password for invalid user bob from 10.0.0.9 from 10.0.0.7 port 4711 ssh2")
    ('failed', 'bob from 10.0.0.9', '10.0.0.7')
    >>> login("[client 10.0.0.7:4711] no such page")
    (None, None, '10.0.0.7')
    """
    message = message[:LONGEST]
    if HINT.search(message):
        for event, form in FORMS:
            if found := form.search(message):
                groups = found.groupdict()
                return event, groups["user"] or None, groups.get("source") or None
    client = CLIENT.search(message)
    return None, None, client["source"] if client else None
