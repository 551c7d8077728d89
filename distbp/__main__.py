"""The command ``distbp``, also as ``python -m distbp``."""

import signal


def main() -> None:
    """Run the command; an interrupt before it begins, or after its end, ends the process without a traceback."""
    handler = signal.getsignal(signal.SIGINT)
    is_heeded = handler is signal.default_int_handler  # it is ignored in the background of a shell
    if is_heeded:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from distbp.cli.main import main as run

    signal.signal(signal.SIGINT, handler)
    try:
        run()
    finally:
        if is_heeded:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
