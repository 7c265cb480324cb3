"""What can go wrong in the kernels.

KernelError
├── KernelBuildError    the compiled operations could not be built or loaded
├── KernelCaptureError  a step holds something that cannot be captured
└── KernelInputError    shapes, dtypes or values that an operation does not take (also a ValueError)
"""


class KernelError(Exception):
    """Base of this package's errors."""


class KernelBuildError(KernelError):
    """The compiled operations could not be built or loaded; the message says why and how to mend it."""


class KernelCaptureError(KernelError):
    """A step cannot be captured, for it holds something that would not be replayed; it runs eagerly all the same."""


class KernelInputError(KernelError, ValueError):
    """An operation was called with shapes, dtypes or values that it does not take."""
