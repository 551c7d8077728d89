"""``python -m distbp``: the command line."""

from distbp.cli.main import main

main()
