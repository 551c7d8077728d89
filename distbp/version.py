"""The version of distbp."""

__version__ = "0.1.0"
