"""The `vitesse` command: one file a verb, no logic in it, heavy imports only inside the verbs."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
import typer.main

from vitesse.cli import (
    analyze,
    bench,
    convert,
    doctor,
    evaluate,
    export,
    models,
    predict,
    prune,
    push,
    search,
    segment,
    train,
)
from vitesse.errors import ConfigError, StoppedError, VitesseError
from vitesse.progress import other_rank

DONE, FAILED, WRONG_USAGE, SOME_REFUSED, STOPPED, INTERRUPTED = 0, 1, 2, 3, 75, 130
DEBUG = "VITESSE_DEBUG"

app = typer.Typer(
    name="vitesse",
    add_completion=False,
    rich_markup_mode=None,  # plain help: rich would take longer to load than all the rest
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _verb in (predict, segment, train, evaluate, export, prune, bench, search, models, convert, push, doctor):
    app.command(_verb.__name__.rpartition(".")[2])(_verb.run)
app.add_typer(analyze.app, name="analyze")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"vitesse {version('vitesse')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _vitesse(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; the same as VITESSE_DEBUG=1.")
    ] = False,
) -> int:
    """Real-time vision transformers: train them, measure them, ship them.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 finished with some inputs refused, 75 training was stopped
    by a signal and saved.

    \b
    Examples:
      vitesse predict photo.jpg
      vitesse train photos/ --model efficientvit_m1 --out runs/mine
      vitesse doctor
    """
    context.ensure_object(dict)["debug"] = debug
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        return WRONG_USAGE
    return DONE


def run(arguments: Sequence[str]) -> int:
    """Run one command line and give its exit code; whatever goes wrong is one line on stderr."""
    context: dict[str, bool] = {}
    try:
        code = typer.main.get_command(app).main(
            list(arguments), prog_name="vitesse", standalone_mode=False, obj=context
        )
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError):
            raise
        if context.get("debug") or os.environ.get(DEBUG):
            traceback.print_exc()
        message, code = _explain(error)
        # The others say theirs too: it may be of that process alone.
        whose = f"rank {rank}: " if (rank := other_rank()) else ""
        print(f"error: {whose}{' '.join(message.split())}", file=sys.stderr)
        return code
    if code == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return code if isinstance(code, int) else DONE


def main() -> None:
    """Entry point of the `vitesse` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold bytes that are no text
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    sys.exit(code)


def _explain(error: BaseException) -> tuple[str, int]:
    """One line for the user, and the exit code."""
    if isinstance(error, StoppedError):
        return str(error), STOPPED
    if isinstance(error, VitesseError):
        return str(error), WRONG_USAGE if isinstance(error, ConfigError) else FAILED
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if (message := getattr(error, "format_message", None)) is not None:
        return _explain_usage(error, message()), WRONG_USAGE
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'system'}: {error.strerror.lower()}", FAILED
    reason = f"{type(error).__name__}: {error}"
    return f"unexpected {reason} (please report it, with the output of `vitesse --debug …`)", FAILED


def _explain_usage(error: Any, message: str) -> str:
    """The parser's message, with the help page to read."""
    context = getattr(error, "ctx", None)
    page = context.command_path if context is not None else "vitesse"
    return f"{message[:1].lower()}{message[1:].rstrip('.')}; see `{page} --help`"
