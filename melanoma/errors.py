"""The errors that a command ends with. Each message is one sentence: what, where, what to do."""


class MelanomaError(Exception):
    """Something failed while running. The command exits with `exit_code`."""

    exit_code = 3


class InputError(MelanomaError):
    """Wrong use or bad input: a missing bucket, an unknown key, a bundle that is not what it says."""

    exit_code = 2
