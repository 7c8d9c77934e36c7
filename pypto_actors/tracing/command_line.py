"""`--trace FILE` and `--plot FILE.png` for a script that has no options of its own."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pypto_actors.tracing.files import TraceFileError
from pypto_actors.tracing.recorder import Recorder, check, record

TRACE_HELP = "write a Chrome trace of what runs there; open it at https://ui.perfetto.dev"
PLOT_HELP = "draw it there (needs matplotlib: the extra `bench`)"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add both options; their values are `trace` and `plot`, paths or None, as `record` takes them."""
    parser.add_argument("--trace", metavar="FILE", type=Path, help=TRACE_HELP)
    parser.add_argument("--plot", metavar="FILE.png", type=Path, help=PLOT_HELP)


@contextmanager
def command_line(description: str | None = None, argv: Sequence[str] | None = None) -> Iterator[Recorder | None]:
    """Read the command line of a script; gives what its workers take as `trace=`, None where nothing was asked for.

        if __name__ == "__main__":
            with tracing.command_line(__doc__) as trace:
                asyncio.run(main(trace))

    A file that cannot be written ends the process with one line, as a wrong option does.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args(argv)
    if options.trace is None and options.plot is None:
        yield None
        return
    try:
        check(options.trace, options.plot)
    except (TraceFileError, ImportError) as error:
        parser.error(str(error))
    try:
        with record(options.trace, plot=options.plot) as recorder:
            yield recorder
    except TraceFileError as error:
        parser.error(str(error))
