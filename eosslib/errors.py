"""The errors a user can cause; each is one line that says what is wrong and what to do."""


class EosslibError(Exception):
    """Base of all errors that the command line prints as one line, without a traceback."""


class ConfigError(EosslibError):
    """A preset or a setting is wrong: unknown key, wrong type, value out of range."""


class DataError(EosslibError):
    """A data file is missing, cannot be fetched, or does not have the expected checksum."""


class RunFileError(EosslibError):
    """A run file cannot be read or written, or is not one of ours."""


class ConfigMismatch(RunFileError):
    """A run file was trained with other settings than the ones asked for."""


class DeviceError(EosslibError):
    """A device was asked for that this machine does not have."""


class Interrupted(EosslibError):
    """Training was stopped from outside; what was reached is in the checkpoint."""
