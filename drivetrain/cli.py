"""The `drivetrain` command, and what `jobs/*.py` call. Thin: read the settings, call one function, print, exit code.

stdout is the result, and its last line is one JSON object; stderr is the log. Exit codes: 0 done, 1 anything that went
wrong, 2 usage or setting, 3 too many images failed, 4 drift under --fail-on-drift, 5 behaviour tests failed, 143 ended
by SIGTERM. `submit --wait` ends with the code of its job.
"""

import json
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import click

import drivetrain
from drivetrain.config import Config, nearest, parse_storage
from drivetrain.console import printable, say
from drivetrain.errors import DrivetrainError, StoreError, Terminated, came_of
from drivetrain.told import in_use, lines_of, night_line

GOES_ON = "What is finished is kept; the same command goes on."
COMMON = ("root", "storage")
SCORING = (
    "learner", "trust", "images", "source", "actors", "gpus_per_actor", "ray_address", "batch_size", "embedding",
    "engine", "precision", "max_pixels", "max_failed",
)  # fmt: skip
JUDGING = (
    "alarms_per_year", "effect_floor", "min_images", "group_by", "review_size", "seed",
    "evidently_embeddings", "fail_on_drift",
)  # fmt: skip
# The commands that a cluster can be given as jobs, and the keys that each can't do without.
JOBS: dict[str, Sequence[str]] = {}


class _Group(click.Group):
    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise click.UsageError(f"No command {args[0]!r}. {nearest(args[0], self.commands)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Score image buckets with an exported fastai learner, and know each night whether it still fits its world."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


@main.group("learner", cls=_Group)
def learner() -> None:
    """Look at an exported learner."""


def _command(
    name: str,
    text: str,
    story: str,
    *,
    needs: Sequence[str],
    keys: Sequence[str],
    arguments: Sequence[str] = (),
    group: click.Group = main,
    job: bool = True,
) -> None:
    """Make a command whose flags are the config's keys, for a function of the public API.

    ``job``: a cluster can be given it. What reads or writes a file of this machine is none.
    """

    def call(json_only: bool, **given: Any) -> None:
        # An argument that is a setting stands for its flag; the others are the function's own.
        named = {each: given[each] for each in arguments if each not in Config.model_fields}

        def work() -> int:
            config = _settings(given, needs)
            return _told(getattr(drivetrain, story)(config, **named), config, json_only)

        _guarded(work)

    if job:
        JOBS[name if group is main else f"{group.name} {name}"] = needs
    options: list[click.Parameter] = [click.Argument([argument]) for argument in arguments]
    options += [_option(key) for key in keys]
    options += [
        click.Option(["--config", "config_file"], metavar="FILE", help="TOML file of the same keys; flags win."),
        click.Option(["--json", "json_only"], is_flag=True, help="Print the JSON object alone."),
    ]
    group.add_command(click.Command(name, callback=call, params=options, help=text, short_help=text))


def _settings(given: dict[str, Any], needs: Sequence[str]) -> Config:
    """The settings that a command line amounts to, with its config file."""
    flags = {
        key: value for key, value in given.items() if key in Config.model_fields and value not in (None, (), False)
    }
    config = Config.load(given["config_file"], **flags | {"storage": parse_storage(given["storage"])})
    # Before the story is imported, which takes seconds.
    config.need(*needs)
    return config


def _option(key: str) -> click.Option:
    field = Config.model_fields[key]
    example = (field.examples or [""])[0]
    flag = "--" + key.replace("_", "-")
    text = field.description or ""
    if example:
        text += f"  E.g. {flag} {example}"
    if key in ("trust", "storage"):
        return click.Option([flag], multiple=True, metavar="SHA256" if key == "trust" else "OPTION", help=text)
    if field.annotation is bool:
        return click.Option([flag], is_flag=True, help=text)
    if field.default not in (None, ()):
        text += f"  Default: {field.default}."
    return click.Option([flag], default=None, metavar=key.upper(), help=text)


def _told(result: dict[str, Any], config: Config, json_only: bool) -> int:
    """Print a result; returns the exit code that it stands for."""
    if not json_only:
        for line in lines_of(result):
            click.echo(printable(line))
    click.echo(printable(json.dumps(result, ensure_ascii=False, default=str)))
    each = [result, *result.get("caught_up", ()), *result.get("nights", ())]
    if any(one.get("too_many_failed") for one in each):
        return 3
    if "checks" in result:
        return 0 if result["ok"] else 1
    if result.get("passed") is False:
        return 5
    return 4 if config.fail_on_drift and any(one.get("verdict") == "drift" for one in each) else 0


def _terminate(number: int, frame: object) -> None:
    """End the work where it stands, unless it is ending already.

    Python swallows what is raised while it runs a destructor or a callback, so this is tried again until it works.
    """
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    if not came_of(sys.exception(), Terminated):
        raise Terminated


def _guarded(work: Callable[[], int]) -> None:
    """Run a command; errors with a plain message show it and nothing else."""
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGALRM, _terminate)
    try:
        code = work()
    except BaseException as error:
        code = _code_of(error)
    finally:
        # Else the alarm would go off in an interpreter that is going down, and end it without its code.
        signal.setitimer(signal.ITIMER_REAL, 0)
    sys.exit(code)


def _code_of(error: BaseException) -> int:
    """Say in plain words what ended a command; returns its exit code. Raises an error that has no such words."""
    if came_of(error, Terminated):
        say(f"Ended by SIGTERM. {GOES_ON}")
        return 128 + signal.SIGTERM
    if came_of(error, KeyboardInterrupt):
        say(f"Stopped. {GOES_ON}")
        return 1
    if isinstance(error, DrivetrainError):
        say(f"Error: {error}")
        if isinstance(error, StoreError):
            say(GOES_ON)
        return error.exit_code
    if isinstance(error, OSError):
        say(f"Error: the store refused ({type(error).__name__}): {error}")
        if isinstance(error, PermissionError):
            click.echo("Credentials come from the environment (AWS_ACCESS_KEY_ID and the like) or the node.", err=True)
        say(GOES_ON)
        return 1
    raise error


_command(
    "reference",
    "Score the training set once, so that nights have something to be held against.",
    "build_and_test_reference",
    needs=("root", "learner", "images"),
    keys=(*COMMON, *SCORING, "labels", "alarms_per_year", "group_by", "seed"),
)
_command(
    "score",
    "Score every image below a prefix.",
    "score_images",
    needs=("root", "learner", "images"),
    keys=(*COMMON, *SCORING, "name", "retry_failed"),
)
_command(
    "rescore",
    "Score the images of old runs under a new learner, and compare each two runs.",
    "rescore_runs",
    needs=("root", "learner"),
    keys=(*COMMON, *SCORING, "run", "nights", "all", "reprocess", "full", "labels", *JUDGING),
)
_command(
    "nightly",
    "Score what is new on a night, compare it with the reference, and publish the report.",
    "run_night",
    needs=("root", "images"),
    keys=(
        *COMMON,
        *SCORING,
        "night",
        "catch_up",
        "shadow",
        "lookback",
        "retry_failed",
        *JUDGING,
        "webhook",
        "notify",
        "site_url",
    ),
)
_command(
    "doctor",
    "Check all that a job needs, and say what to type for what is missing.",
    "check_setup",
    needs=(),
    keys=(*COMMON, *SCORING, "night"),
)
_command(
    "compare",
    "Compare two committed runs, OLD and NEW, over the same images, and say what to do.",
    "compare_runs",
    needs=("root",),
    keys=COMMON,
    arguments=("old", "new"),
)
_command(
    "behave",
    "Test a learner's behaviour: do its labels stay under changes that should not matter?",
    "check_behaviour",
    needs=("root", "learner"),
    keys=(
        *COMMON, "source", "trust", "behaviour_images", "cases", "group_by", "seed", "actors", "gpus_per_actor",
        "ray_address", "embedding", "engine", "precision", "max_pixels",
    ),
    arguments=("learner",),
)  # fmt: skip


_command(
    "table",
    "Make the Delta table of a source's current scores up to date and compact, and show how to read it.",
    "show_table",
    needs=("root", "source"),
    keys=(*COMMON, "source"),
)


@main.group("drift", cls=_Group)
def drift() -> None:
    """Hold runs against their reference, accept nights as usual, and see what the test can see."""


_command(
    "measure",
    "Hold a committed run against its learner's reference, and write the report.",
    "measure_drift",
    needs=("root", "run"),
    keys=(*COMMON, "run", "actors", "ray_address", *JUDGING),
    group=drift,
)
_command(
    "accept",
    "Accept a measured run as a usual night: 20 of them teach the test how nights differ.",
    "accept_night",
    needs=("root", "run"),
    keys=(*COMMON, "run"),
    group=drift,
)
_command(
    "selftest",
    "Plant shifts into nights made of a reference's images, and say which of them the test sees.",
    "self_test_drift",
    needs=("root", "run"),
    keys=(*COMMON, "run", "trust", "actors", "gpus_per_actor", "ray_address", "alarms_per_year", "group_by", "seed"),
    group=drift,
)


_command(
    "inspect",
    "Say what an export.pkl is, without running anything of it.",
    "inspect_learner",
    needs=("learner",),
    keys=("trust", "embedding", "storage"),
    arguments=("learner",),
    group=learner,
    job=False,
)
_command(
    "queue",
    "Write a measured run's review queue as a file to be labelled: CSV, Label Studio or FiftyOne.",
    "export_queue",
    needs=("root", "run"),
    keys=(*COMMON, "to", "output", "sample"),
    arguments=("run",),
    job=False,
)


@main.group("labels", cls=_Group)
def labels() -> None:
    """Take in the labels that people gave."""


_command(
    "import",
    "Take in people's labels (CSV, Label Studio, FiftyOne), and count how often the learner was right.",
    "import_labels",
    needs=("root", "source"),
    keys=(*COMMON, "source", "actors", "ray_address"),
    arguments=("file",),
    group=labels,
    job=False,
)


@main.command("nights")
@click.option(
    "--root", help="Folder or bucket prefix that drivetrain writes to.  E.g. --root s3://my-bucket/drivetrain"
)
@click.option("--source", help="Only this source.  E.g. --source shop")
@click.option("--storage", multiple=True, metavar="OPTION", help="fsspec options by protocol.")
@click.option("--config", "config_file", metavar="FILE", help="TOML file of the same keys; flags win.")
@click.option("--json", "json_only", is_flag=True, help="Print one JSON object alone.")
def nights(
    root: str | None, source: str | None, storage: tuple[str, ...], config_file: str | None, json_only: bool
) -> None:
    """Show the nights: done, stale, running, dead, planned, and those that did not run; and who is champion."""

    def work() -> int:
        config = Config.load(config_file, root=root, source=source, storage=parse_storage(storage))
        found, learners = drivetrain.list_nights(config), drivetrain.learners_in_use(config)
        if not json_only:
            for name, named in learners.items():
                click.echo(printable(in_use(name, named)))
            for each in found:
                click.echo(printable(night_line(each.record())))
            if not found:
                click.echo("No night yet.")
        told = {"nights": [each.record() for each in found], "learners": learners}
        click.echo(printable(json.dumps(told, ensure_ascii=False)))
        return 0

    _guarded(work)


@main.command("promote")
@click.argument("learner", required=False)
@click.option(
    "--scope",
    help="Make it the challenger first, which scores this part beside the champion: a share of the images, or a regular"
    " expression on the uri.  E.g. --scope 0.1",
)
@click.option("--rollback", is_flag=True, help="Make the champion before this one the champion again.")
@click.option("--withdraw", is_flag=True, help="Take the challenger away.")
@click.option("--despite-behaviour", is_flag=True, help="Promote a learner that fails its behaviour tests.")
@click.option("--config", "config_file", metavar="FILE", help="TOML file of the same keys; flags win.")
@click.option("--json", "json_only", is_flag=True, help="Print the JSON object alone.")
def promote(
    learner: str | None, scope: str | None, rollback: bool, withdraw: bool, despite_behaviour: bool, json_only: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Make LEARNER, an id of a learner or a run or an export.pkl, the champion that scores a source's nights."""
    if [bool(learner), rollback, withdraw].count(True) != 1 or (not learner and (scope or despite_behaviour)):
        raise click.UsageError("Give a LEARNER (with --scope for a part first), or --rollback, or --withdraw.")

    def work() -> int:
        config = _settings(given, ("root",))
        if learner:
            result = drivetrain.promote(config, learner, scope=scope, despite_behaviour=despite_behaviour)
        else:
            result = drivetrain.roll_back(config) if rollback else drivetrain.withdraw(config)
        return _told(result, config, json_only)

    _guarded(work)


promote.params += [_option(key) for key in ("root", "source", "trust", "embedding", "storage")]


@main.command("gc")
@click.option(
    "--root", help="Folder or bucket prefix that drivetrain writes to.  E.g. --root s3://my-bucket/drivetrain"
)
@click.option(
    "--run", help="Remove this run too, though its command would finish it.  E.g. --run shop-2026-11-23-3fa9…"
)
@click.option("--delete", is_flag=True, help="Remove what is found; without it nothing is changed.")
@click.option("--storage", multiple=True, metavar="OPTION", help="fsspec options by protocol.")
@click.option("--config", "config_file", metavar="FILE", help="TOML file of the same keys; flags win.")
@click.option("--json", "json_only", is_flag=True, help="Print one JSON object alone.")
def gc(
    root: str | None, run: str | None, delete: bool, storage: tuple[str, ...], config_file: str | None, json_only: bool
) -> None:
    """Find what nobody refers to and is older than 7 days, and remove it with --delete."""

    def work() -> int:
        config = Config.load(config_file, root=root, run=run, storage=parse_storage(storage))
        return _told(drivetrain.collect_garbage(config, delete=delete), config, json_only)

    _guarded(work)


@main.command(
    "notify",
    params=[
        click.Option(["--test"], is_flag=True, help="Post a test message, and say what came back."),
        *[_option(key) for key in ("root", "storage", "run", "webhook", "site_url")],
        click.Option(["--config", "config_file"], metavar="FILE", help="TOML file of the same keys; flags win."),
        click.Option(["--json", "json_only"], is_flag=True, help="Print the JSON object alone."),
    ],
)
def notify(test: bool, json_only: bool, **given: Any) -> None:
    """Post a test message to the chat, or a night's message again."""

    def work() -> int:
        config = _settings(given, ())
        return _told(drivetrain.notify_chat(config, test=test), config, json_only)

    _guarded(work)


@main.command("ui")
@click.option(
    "--root", help="Folder or bucket prefix that drivetrain writes to.  E.g. --root s3://my-bucket/drivetrain"
)
@click.option("--config", "config_file", metavar="FILE", help="TOML file of the same keys; flags win.")
@click.option("--storage", multiple=True, metavar="OPTION", help="fsspec options by protocol.")
@click.option("--port", default=8000, show_default=True, help="Port on this machine.  E.g. --port 8000")
def ui(root: str | None, storage: tuple[str, ...], config_file: str | None, port: int) -> None:
    """Serve Evidently's dashboard of all nights on this machine."""

    def work() -> int:
        from drivetrain.report import serve
        from drivetrain.root import open_root

        store, layout = open_root(Config.load(config_file, root=root, storage=parse_storage(storage)), existing=True)
        return serve(layout.workspace, port, store)

    _guarded(work)


@main.command("submit", context_settings={"allow_interspersed_args": False})
@click.option(
    "--address",
    help="The head's dashboard; by default RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or a cluster on this machine."
    "  E.g. --address http://127.0.0.1:8265",
)
@click.option("--wait", is_flag=True, help="Show the job's log and end with its exit code (1 if it was stopped).")
@click.option("--insecure", is_flag=True, help="Submit to a cluster that asks nobody for a token.")
@click.argument("job", metavar="COMMAND [FLAGS]...", nargs=-1, type=click.UNPROCESSED, required=True)
@click.pass_context
def submit(context: click.Context, address: str | None, wait: bool, insecure: bool, job: tuple[str, ...]) -> None:
    """Run another command as a job of a Ray cluster; its config file and labels file travel with it."""
    length = 2 if isinstance(main.commands.get(job[0]), click.Group) else 1
    words, flags = list(job[:length]), list(job[length:])
    command = " ".join(words)
    if command not in JOBS:
        raise click.UsageError(f"{command!r} can't be submitted. {nearest(command, JOBS)}", context)
    found: Any = main
    for word in words:
        found = found.commands[word]
    # click takes out of a list what it has read.
    given = found.make_context(command, list(flags), parent=context.parent).params

    def work() -> int:
        config = _settings(given, JOBS[command])
        from drivetrain.submit import submit_command

        started = submit_command([*words, *flags], config, given["config_file"], address=address, insecure=insecure)
        if wait:
            return started.wait()
        click.echo(json.dumps({"submission_id": started.id, "address": started.cluster.url}))
        return 0

    _guarded(work)


@main.command("demo")
@click.option(
    "--root", default="demo", show_default=True, help="Folder or bucket prefix for the demo.  E.g. --root s3://b/demo"
)
@click.option("--storage", multiple=True, metavar="OPTION", help="fsspec options by protocol.")
def demo(root: str, storage: tuple[str, ...]) -> None:
    """Show two nights end to end on real digits: train, score, drift, retrain, rescore, compare."""

    def work() -> int:
        from drivetrain.demo import show

        show(root, parse_storage(storage) or {})
        return 0

    _guarded(work)


if __name__ == "__main__":
    main()
