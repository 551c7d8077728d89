"""The ``distbp`` command."""
