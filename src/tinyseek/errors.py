"""The one error that a user can cause, and mend."""


class UserError(Exception):
    """Something the user can put right: what is wrong, where (file, line, key), and what to do, in a line or two.

    The command line prints it without a traceback and exits with status 2; any other exception is a bug and keeps
    its traceback.
    """
