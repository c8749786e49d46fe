"""The `twostage` command. One file per subcommand: each parses, calls the library, and prints.

Nothing here imports torch until a command needs it: `twostage --help` must answer at once.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from twostage import __version__
from twostage.errors import UserError

from . import (
    bench,
    cache,
    compare,
    demo,
    doctor,
    evaluate,
    export,
    generate,
    photos,
    plan,
    push,
    recipe,
    report,
    token,
    train,
)
from .flags import SectionedHelp

# The class all of Typer's complaints about arguments derive from; it has no public name.
UsageError: Any = typer.BadParameter.__mro__[1]


class Commands(TyperGroup):
    """The commands, with every mistake of the user's ending in one line on stderr and exit code 2."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line; always ends in SystemExit."""
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except UserError as error:
            code = _complain(str(error))
        except UsageError as error:
            context = getattr(error, "ctx", None)
            code = _complain(error.format_message(), f"{context.command_path if context else 'twostage'} --help")
        except (KeyboardInterrupt, typer.Abort):
            code = 130
        except (RuntimeError, OSError, MemoryError) as error:
            if not _lacks_memory(error):
                raise
            code = _complain("out of memory; close what else uses it, or ask for less at once")
        sys.exit(code)


def _lacks_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from twostage.lack import lacks_memory

    return lacks_memory(error)


def _complain(message: str, see: str = "") -> int:
    hint = f" (see `{see}`)" if see else ""
    for line in message.splitlines():
        typer.echo(f"error: {line}{hint}", err=True)
    return 2


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"twostage {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="twostage",
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    # --max_train_steps as other trainers spell it means --max-train-steps.
    context_settings={
        "token_normalize_func": lambda name: name.replace("_", "-"),
        "help_option_names": ["-h", "--help"],
    },
)


@app.callback(invoke_without_command=True)
def twostage(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Teach a text-to-image diffusion model one subject from 3 to 5 photos, in two stages.

    Start with: twostage demo
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command(cls=SectionedHelp)(train.train)
app.command(cls=SectionedHelp)(plan.plan)
app.command()(generate.generate)
app.command(cls=SectionedHelp)(evaluate.evaluate)
app.command(cls=SectionedHelp)(compare.compare)
app.command()(export.export)
app.command()(report.report)
app.command()(push.push)
app.command()(demo.demo)
app.command()(doctor.doctor)
app.add_typer(recipe.app, name="recipe")
app.add_typer(token.app, name="token")
app.add_typer(photos.app, name="photos")
app.add_typer(bench.app, name="bench")
app.add_typer(cache.app, name="cache")
