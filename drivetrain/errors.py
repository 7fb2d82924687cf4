"""Every error that drivetrain raises on purpose, and the exit code that each stands for.

DrivetrainError                 1   anything that went wrong and has a plain message
├── SettingError                2   a flag, a config key or a uri that can't be right
│   └── TrustError              2   an export.pkl that nobody vouched for
├── StoreError                  1   object storage refused, or does not hold what it must
├── LearnerError                1   an export that can't be loaded or can't be served
├── DeviceError                 1   a GPU that computes nothing more in this process; another process goes on
└── RunError                    1   a run that stopped before its commit; the same command resumes it

A message says what was expected, what was found, and what to type next. A bad image is none of these: it is a row.
"""


class DrivetrainError(Exception):
    """Something went wrong that has a plain message; no stack trace is shown to the user."""

    exit_code = 1


class SettingError(DrivetrainError):
    """A flag, a config key or a uri that can't be right; nothing was done."""

    exit_code = 2


class TrustError(SettingError):
    """An export.pkl whose hash is in no trust list; it was not unpickled."""


class StoreError(DrivetrainError):
    """Object storage refused an operation, or does not hold what it must."""


class LearnerError(DrivetrainError):
    """An export that can't be loaded, or a kind of learner that can't be served."""


class DeviceError(DrivetrainError):
    """A GPU failed, and with it whatever this process would compute next; another process may go on."""


class RunError(DrivetrainError):
    """A run stopped before its commit; the same command resumes it."""


class ImageError(Exception):
    """Why one image could not be scored: it becomes that image's row and never leaves the scoring room.

    ``reason`` is one of a few words (`REASONS`), ``args[0]`` the detail.
    """

    def __init__(self, reason: str, text: str) -> None:
        assert reason in REASONS, reason
        super().__init__(text)
        self.reason = reason


REASONS = {
    "empty": "the object has no bytes",
    "undecodable": "the bytes are no image that Pillow can read",
    "too_large": "the image has more pixels than max_pixels allows, or more bytes than so many pixels can have",
    "learner": "the learner's transforms or its network raised on this image, or gave no finite numbers",
    "crashed": "the process that scored the image ended, again and again",
    "vanished": "the object was listed but is gone",
    "denied": "the store refuses to hand out the object",
    "changed": "the object is not the one that was listed",
    "damaged": "the bytes that came are not those of the object, again and again",
    "unreachable": "the store did not hand out the object",
}


class Terminated(BaseException):
    """SIGTERM came: whoever works has time to say so."""


def came_of(error: BaseException | None, *kinds: type[BaseException]) -> bool:
    """Whether an exception is one of some kinds, or what a library made of one: Ray makes SystemErrors."""
    while error and not isinstance(error, kinds):
        error = error.__context__
    return error is not None
