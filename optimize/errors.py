"""A mistake that the user can mend. Its message names the thing, what was expected, what came and what to do."""


class UserError(Exception):
    """Shown as one line by every command, which then exits with status 2; never with a traceback."""
