"""The one exception type for bad input: a sentence that names the item and the remedy."""


class UserError(ValueError):
    """Bad input from the user, told in one sentence that names the item and the remedy.

    The command line prints the message alone and exits with status 2; in Python it is an ordinary `ValueError`.
    """
