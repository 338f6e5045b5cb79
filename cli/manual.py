"""The manual page, generated from the help of the commands, and the tables of options in docs/python.md.

python -m cli.manual docs/tessera.1
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from cli.main import main
from codec import __version__
from codec.options import definitions

TAIL = r"""
.SH EXIT STATUS
.TP
.B 0
All files were converted.
.TP
.B 1
A file failed, or missed its target under \fB\-\-strict\fR. The others were converted, unless the model cannot be used.
.TP
.B 2
The command line was wrong. No file was converted.
.TP
.B 130
Interrupted (SIGINT). No output is half-written; the same command with \fB\-\-skip\-existing\fR continues.
.TP
.B 143
Terminated (SIGTERM), in the same way.
.SH ENVIRONMENT
.TP
.B NO_COLOR
If set, progress is shown without colours.
.SH FILES
Outputs are written to a temporary file, \fI.tessera\-0123456789abcdef.tmp\fR in the same folder, which is then renamed. A
killed run may leave such a file behind; the next run that writes there removes it.
.PP
Without \fB\-f\fR no existing file is replaced, not even one that appears while Tessera is working. A symbolic link counts as an
existing file. With \fB\-f\fR symbolic links are followed: the link stays, and its target is replaced or created. Devices
and named pipes are written to directly.
"""


def manual() -> str:
    """The page, as man(7) markup."""
    lines = [f'.TH TESSERA 1 "" "tessera {__version__}" "User Commands"', ".SH NAME", r"tessera \- learned image codec"]
    lines += [".SH SYNOPSIS", r"\fBtessera\fR [\fB\-h\fR|\fB\-V\fR]"]
    commands = list(_commands(main, "tessera"))
    for name, command in commands:
        lines += [".br", _synopsis(name, command)]
    lines += [".SH DESCRIPTION", *_text(main.help or ""), ".SH COMMANDS"]
    for name, command in commands:
        lines += [f".SS {_escape(name)}", *_text(command.help or ""), *_options(command, name)]
    return "\n".join(lines) + TAIL


def _context(command: click.Command, name: str) -> click.Context:
    """The context a command has at run time. click caches the help option's names in the first context it sees."""
    return click.Context(command, info_name=name, **main.context_settings)


def _commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    """All commands below a group, with their full names."""
    context = _context(group, name)
    for child in group.list_commands(context):
        command = group.get_command(context, child)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _commands(command, f"{name} {child}")
        else:
            yield f"{name} {child}", command


def _synopsis(name: str, command: click.Command) -> str:
    pieces = command.collect_usage_pieces(_context(command, name))
    return " ".join([rf"\fB{_escape(name)}\fR", *(rf"\fI{_escape(piece)}\fR" for piece in pieces)])


def _options(command: click.Command, name: str) -> Iterator[str]:
    context = _context(command, name)
    for parameter in command.params:
        described = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and described:
            yield from (".TP", rf"\fB{_escape(described[0])}\fR", _escape(described[1]))


def _text(text: str) -> Iterator[str]:
    """Converts click help text to man markup. Paragraphs that start with a backspace keep their line breaks."""
    for number, paragraph in enumerate(inspect.cleandoc(text).split("\n\n")):
        if number:
            yield ".PP"
        if paragraph.startswith("\b\n"):
            yield from (".nf", *map(_escape, paragraph.splitlines()[1:]), ".fi")
        else:
            yield _escape(" ".join(paragraph.split()))


def option_table(definition: type) -> list[str]:
    """The rows of a Markdown table of a class of `codec.options`: keyword, flags of the command, meaning."""
    rows = ["| keyword | flag | meaning |", "|---|---|---|"]
    for name, (_, option) in definitions(definition).items():
        flags = ", ".join(f"`{flag}`" for flag in (*option.flags, f"--{name.replace('_', '-')}")) if option.flag else ""
        default = f"; default: {option.default}" if option.default else ""
        rows.append(f"| `{name}` | {flags} | {option.help}{default} |")
    return rows


def _escape(text: str) -> str:
    """Text escaped for man(7)."""
    plain = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{plain}" if plain[:1] in (".", "'") else plain


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes the manual page.")
    parser.add_argument("path", type=Path)
    parser.parse_args().path.write_text(manual())
