"""The command line: parse, call, print. Verbs are imported when they are used, so `--help` and Tab stay instant."""

from __future__ import annotations

import importlib
import io
import os
import sys

import click

from .. import __version__
from ..errors import CanwaitError
from .face import Face, Usage, report

# verb: (module, what it does); the order is the order of a job's life
VERBS: dict[str, tuple[str, str]] = {
    "init": ("operate", "Write a first job file beside your rows."),
    "audit": ("audit", "Show which calls can wait, with proof, and what that would save."),
    "worth": ("audit", "Show what moving a call site is worth, from a worksheet."),
    "demo": ("demo", "Watch a job run, crash and resume: no key, no network, no cost."),
    "plan": ("jobs", "Show what a job would do and cost. Never spends."),
    "run": ("jobs", "Run a job to its end, or go on with it. Running again costs nothing."),
    "status": ("jobs", "Show where jobs stand."),
    "why": ("jobs", "Show what holds a job, shard by shard."),
    "cancel": ("jobs", "Send nothing more of a job; finished rows are kept."),
    "inspect": ("inspect", "Judge a sample of a job's answers: nothing is loaded before it passes."),
    "load": ("jobs", "Load a job's usable rows again."),
    "results": ("jobs", "Print the rows that have ended, also while the job runs."),
    "read": ("fresh", "Print what a job has published, to a reader that says how old it may be."),
    "fresh": ("fresh", "Show who reads what, how old it may be, and how old it is."),
    "resolve": ("jobs", "Answer what a provider's listing cannot tell."),
    "events": ("jobs", "Print every change after a cursor."),
    "notify": ("notify", "Tell people what has happened to jobs; try again what did not arrive."),
    "benchmark": ("benchmark", "Measure a job on small and large models, batch and realtime."),
    "budget": ("budget", "Show, set, book to and thaw budgets."),
    "local": ("operate", "Install the local model."),
    "doctor": ("operate", "Check keys, ledger, disk, clock and prices."),
    "sim": ("operate", "Serve the simulator."),
    "drill": ("operate", "Prove the promises here: crash, cap, expiry."),
    "schema": ("operate", "Print a published JSON Schema."),
}


class Verbs(click.Group):
    """Subcommands by name, imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        module = importlib.import_module(f".{VERBS[name][0]}", __package__)
        command = getattr(module, name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], VERBS, 1)
            meant = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(error.message + meant, ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="canwait")
def cli() -> None:
    """Run LLM work that can wait: priced before it is spent, stopped at a hard cap, never paid twice."""


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with a code of the table in docs/cli.md."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a row's words may be in no character set of this terminal
    try:
        code = cli.main(args, prog_name="canwait", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):  # click turns Ctrl-C into Abort
        Face.interrupted()
        code = 130
    except click.exceptions.Exit as leave:
        code = leave.exit_code
    except click.ClickException as error:
        if "--json" in (sys.argv[1:] if args is None else args):
            report(Usage(error.format_message(), hint="`canwait --help` lists verbs and flags"), as_json=True)
        else:
            error.show()
        code = 2
    except CanwaitError as error:
        report(error)
        code = error.exit_code
    except BrokenPipeError:
        # The reader of our output went away; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)
