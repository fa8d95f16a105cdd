"""The one exception a user's mistake raises."""


class UserError(Exception):
    """A mistake the user can mend: one line saying what was found, what was expected, what to type.

    The command line prints it without a traceback and exits with code 2.
    """
