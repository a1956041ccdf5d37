"""The one exception that stands for a mistake of the user, to be shown as a single line."""


class UserError(Exception):
    """Something the user can mend: the message names the field or file, what was found, what is allowed.

    `main.py` prints it after "error: " and exits with 1; nothing else is treated so, and every other
    exception keeps its traceback.
    """
