"""The errors that a command ends with. Each message is one sentence: what, where, what to do."""

import re

is_command = False
"""Whether this process is that of a command, which may be ended; a notebook or a server of somebody else may not."""

_END = r"\s'\"<>"
# What of a URL is secret, however the URL is mistyped; the first group is kept.
_SECRETS = (
    # user:password@host, also where the password has a slash or an @; but not host:9000/name@2x.jpg
    re.compile(rf"(\w:/{{1,3}})[^{_END}/@:]*:(?!\d{{1,5}}/)\S+@(?=[^{_END}])"),
    re.compile(rf"()[^{_END}/@:]+:(?!/|\d{{1,5}}/)[^{_END}]+@(?=[^{_END}])"),
    re.compile(rf"(\w:/{{1,3}})[^{_END}/@:]+@(?=[^{_END}])"),
    # Whatever stands behind the ? of a URL; that of s3:// and file:// may be a part of a name.
    re.compile(rf"((?<![\w+.-])(?!s3:|file:)[a-z][\w+.-]*:/{{1,3}}[^{_END}?]*\?)[^{_END}]+", re.IGNORECASE),
    re.compile(
        rf"([?&;#][^{_END}=&]*(?:auth|credential|key|passw|pwd|secret|sig|token)[^{_END}=&]*=)[^{_END}&]+",
        re.IGNORECASE,
    ),
    re.compile(rf"(\b\w*(?:access_key|password|secret|token)\w*=)[^{_END}]+", re.IGNORECASE),
)


def redacted(message: str) -> str:
    """A message without the passwords, keys and signatures of the URLs in it."""
    for pattern in _SECRETS:
        message = pattern.sub(lambda found: f"{found[1]}***{'@' if found[0].endswith('@') else ''}", message)
    return message


class MelanomaError(Exception):
    """Something failed while running. The command exits with `exit_code`. Its message tells no secret."""

    exit_code = 3

    def __init__(self, message: str = "") -> None:
        super().__init__(redacted(message))


class InputError(MelanomaError):
    """Wrong use or bad input: a missing bucket, an unknown key, a bundle that is not what it says."""

    exit_code = 2
