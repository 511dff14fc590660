"""The one exception that stands for a mistake a person can mend."""


class UserError(Exception):
    """Bad input: the message alone must let a person act.

    It names the file or field, what was found and what is allowed. Launch
    scripts print it on one line and exit with code 2; a traceback is shown
    under ``--debug`` only.
    """
