"""The `tessera` command. Each subcommand parses its arguments, calls one function of the library, and reports.

Modules that are slow to import are imported when they are used, so that help appears at once."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import warnings
from functools import partial
from types import FrameType
from typing import Any

import click

from cli.bench import bench
from cli.completion import completion
from cli.contribution import contribution
from cli.decode import decode
from cli.encode import encode
from cli.info import info
from cli.inputs import ENDING, readable_endings
from cli.models import models
from cli.options import Ordered
from cli.outputs import silence
from cli.report import Failed, Interrupted, exit_code, lacks_memory, message_of, say
from cli.tokens import tokens
from cli.train import train
from codec.errors import TesseraError


class Tessera(Ordered):
    """The command. Reports errors that no subcommand reported, such as a closed standard output, on one line."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        missing = _missing_command(args[0]) if args[0] not in self.commands else None
        if missing:
            line = shlex.join(["tessera", missing, *args])
            msg = f"{args[0]!r} is not a command: did you mean `{line}`?"
            raise click.UsageError(msg, ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (TesseraError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not lacks_memory(error):
                raise
            say(f"Error: {message_of(error)}")
            raise Failed(exit_code(error)) from error

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Like `click.Group.main`, but without a traceback if a standard stream cannot be written to."""
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **extra)  # type: ignore[call-overload]
        try:
            code = super().main(*args, standalone_mode=False, **extra)  # type: ignore[call-overload]
        except click.ClickException as error:
            try:
                error.show()
            except OSError:
                silence(sys.stderr)
            sys.exit(error.exit_code)
        except OSError as error:  # raised while printing help
            silence(sys.stdout)
            if not isinstance(error, BrokenPipeError):  # a reader may stop early
                say(f"Error: cannot write to standard output ({error.strerror or error}): check space and permissions")
            sys.exit(1)
        sys.exit(code if isinstance(code, int) else 0)


def _missing_command(name: str) -> str | None:
    """The subcommand that is missing before a file name, if `name` is one."""
    ending = os.path.splitext(name)[1].lower()
    if ending == ENDING:
        return "decode"
    return "encode" if os.path.exists(name) or (ending and ending in readable_endings()) else None


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from bitstream.container import VERSION
    from codec import __version__
    from codec.models.registry import open_model

    model = open_model()
    click.echo(f"tessera {__version__}, format {VERSION}, model {model.name} (stream id {model.stream_id.hex()})")
    ctx.exit()


def _interrupt(number: int, _: FrameType | None) -> None:
    raise Interrupted(128 + number)


@click.group(cls=Tessera, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "-V",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the versions of the tool, the format and the model.",
)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Tessera compresses photographs to sizes too small for JPEG and WebP.

    \b
    tessera encode photo.jpg                        writes photo.tsr in the same folder
    tessera encode photo.jpg -o small.tsr --target-size 2k
    tessera encode -r photos/ --output-dir small/
    tessera decode small.tsr -o small.png
    tessera encode - -o - <a.png | tessera decode - -o - >b.png
    """
    ctx.with_resource(warnings.catch_warnings())
    warnings.filterwarnings("ignore", module="PIL")  # notes and errors say what concerns the user
    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.signal(number, _interrupt)
        ctx.call_on_close(partial(signal.signal, number, handler))  # restores the handler for Python programs that call `main`


bench.add_command(contribution)
for command in (encode, decode, info, tokens, bench, models, train, completion):
    main.add_command(command)
