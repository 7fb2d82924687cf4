"""The `drivetrain` command, and what `jobs/*.py` call. Thin: read the settings, call one function, print, exit code.

stdout is the result, and its last line is one JSON object; stderr is the log. With --json that object is all of stdout,
also of a failure: {"error": {"kind", "message", "exit_code"}}. Exit codes: 0 done, 1 anything that went wrong, 2 usage
or setting, 3 too many images failed, 4 drift under --fail-on-drift, 5 behaviour tests failed, 143 ended by SIGTERM.
`submit --wait` ends with the code of its job.
"""

import json
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import IO, Any, Literal, get_args, get_origin

import click

import drivetrain
from drivetrain.config import NOT_IN_A_FILE, Config, nearest, parse_storage, without_secrets
from drivetrain.console import printable, say
from drivetrain.errors import DrivetrainError, StoreError, Terminated, came_of
from drivetrain.told import lines_of

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
FORECAST = ("dry_run", "price_per_hour")
# What a shell completes with the names of files.
PLACES = ("root", "learner", "images", "labels", "shadow", "cases", "output")
# The commands that a cluster can be given as jobs, and the keys that each can't do without.
JOBS: dict[str, Sequence[str]] = {}


# Where results go while stdout is kept free for them, None for stdout itself.
_RESULTS: ContextVar[IO[str] | None] = ContextVar("_RESULTS", default=None)


class _Group(click.Group):
    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise click.UsageError(f"No command {args[0]!r}. {nearest(args[0], self.commands)}", ctx)
        return super().resolve_command(ctx, args)


class _Main(_Group):
    """The outermost group: under --json what click itself refuses is a JSON object too."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        as_json = "--json" in args
        with _refusals(as_json):
            context = super().make_context(info_name, args, parent, **extra)
        context.obj = as_json
        return context

    def invoke(self, ctx: click.Context) -> Any:
        with _refusals(_as_json()):
            return super().invoke(ctx)


@contextmanager
def _refusals(as_json: bool) -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        if as_json:
            _print(json.dumps(_error(type(error).__name__, error.format_message(), error.exit_code)))
        raise


def _as_json() -> bool:
    """Whether the command line holds --json."""
    context = click.get_current_context(silent=True)
    return bool(context and context.obj)


def _error(kind: str, message: str, exit_code: int) -> dict[str, Any]:
    return {"error": {"kind": kind, "message": without_secrets(message), "exit_code": exit_code}}


def _print(line: str) -> None:
    """A line of the result."""
    click.echo(printable(line), file=_RESULTS.get())


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
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
    story: str | Callable[..., dict[str, Any]],
    *,
    needs: Sequence[str],
    keys: Sequence[str],
    arguments: Sequence[str] = (),
    options: Sequence[click.Option] = (),
    group: click.Group = main,
    job: bool = True,
) -> None:
    """Make a command whose flags are the config's keys, for a function of the public API or one that serves as such.

    ``options`` are flags that are no settings, and go to the function by name. ``job``: `submit` takes the command.
    """

    def call(json_only: bool, **given: Any) -> None:
        # An argument that is a setting stands for its flag; the others are the function's own.
        own = [*arguments, *(str(option.name) for option in options)]
        named = {each: given[each] for each in own if each not in Config.model_fields}

        def work() -> int:
            config = _settings(given, needs)
            do = getattr(drivetrain, story) if isinstance(story, str) else story
            return _told(do(config, **named), config, json_only)

        _guarded(work)

    if job:
        JOBS[name if group is main else f"{group.name} {name}"] = needs
    params: list[click.Parameter] = [click.Argument([argument]) for argument in arguments]
    params += [*options, *_options(keys)]
    group.add_command(click.Command(name, callback=call, params=params, help=text, short_help=text))


def _options(keys: Sequence[str]) -> list[click.Option]:
    """The flags of some keys, and those that every command has."""
    text = "TOML file of the same keys; flags and the environment win."
    config = click.Option(["--config", "config_file"], metavar="FILE", type=click.Path(), help=text)
    return [*map(_option, keys), config, _json_option()]


def _json_option() -> click.Option:
    return click.Option(["--json", "json_only"], is_flag=True, help="Print one JSON object alone, of errors too.")


def _settings(given: dict[str, Any], needs: Sequence[str], environment: Mapping[str, str] | None = None) -> Config:
    """The settings that a command line amounts to, with its config file and the environment."""
    flags = {
        key: value for key, value in given.items() if key in Config.model_fields and value is not None and value != ()
    }
    config = Config.load(given["config_file"], environment, **flags | {"storage": parse_storage(given["storage"])})
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
        # Neither is given: what the file or the environment says stays.
        return click.Option([f"{flag}/--no-{flag.removeprefix('--')}"], default=None, help=text)
    if field.default not in (None, ()):
        text += f"  Default: {field.default}."
    if get_origin(field.annotation) is Literal:
        return click.Option([flag], default=None, type=click.Choice(get_args(field.annotation)), help=text)
    kind = click.Path() if key in PLACES else None
    return click.Option([flag], default=None, type=kind, metavar=key.upper(), help=text)


def _told(result: dict[str, Any], config: Config, json_only: bool) -> int:
    """Print a result; returns the exit code that it stands for."""
    from drivetrain.root import finite

    if not json_only:
        for line in lines_of(result):
            _print(line)
    _print(json.dumps(finite(result), ensure_ascii=False, default=str, allow_nan=False))
    each = [result, *result.get("caught_up", ()), *(result["nights"] if "learner" in result else ())]
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
    with _stdout_for_results():
        try:
            code = work()
        except BaseException as error:
            code = _code_of(error)
        finally:
            # Else the alarm would go off in an interpreter that is going down, and end it without its code.
            signal.setitimer(signal.ITIMER_REAL, 0)
    sys.exit(code)


@contextmanager
def _stdout_for_results() -> Iterator[None]:
    """Under --json what libraries print goes to stderr: stdout is to be read by a program."""
    if not _as_json():
        yield
        return
    before = _RESULTS.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _RESULTS.reset(before)


def _code_of(error: BaseException) -> int:
    """Say in plain words what ended a command; returns its exit code. Raises an error that has no such words."""
    kind, code = type(error).__name__, 1
    if came_of(error, Terminated):
        kind, message, code = "Terminated", "Ended by SIGTERM.", 128 + signal.SIGTERM
        say(f"{message} {GOES_ON}")
    elif came_of(error, KeyboardInterrupt):
        kind, message = "KeyboardInterrupt", "Stopped."
        say(f"{message} {GOES_ON}")
    elif isinstance(error, DrivetrainError):
        message, code = str(error), error.exit_code
        say(f"Error: {message}")
        if isinstance(error, StoreError):
            say(GOES_ON)
    elif isinstance(error, OSError):
        message = f"the store refused ({kind}): {error}"
        say(f"Error: {message}")
        if isinstance(error, PermissionError):
            click.echo("Credentials come from the environment (AWS_ACCESS_KEY_ID and the like) or the node.", err=True)
        say(GOES_ON)
    elif isinstance(error, click.ClickException) or not isinstance(error, Exception):
        raise error
    else:
        message = str(error)
    if _as_json():
        _print(json.dumps(_error(kind, message, code), ensure_ascii=False))
    if not isinstance(error, DrivetrainError | OSError) and not came_of(error, Terminated, KeyboardInterrupt):
        raise error
    return code


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
    keys=(*COMMON, *SCORING, "name", "retry_failed", *FORECAST),
)
_command(
    "rescore",
    "Score the images of old runs under a new learner, and compare each two runs.",
    "rescore_runs",
    needs=("root", "learner"),
    keys=(*COMMON, *SCORING, "run", "nights", "all", "reprocess", "full", "labels", *JUDGING, *FORECAST),
)
_command(
    "nightly",
    "Score what is new on a night, compare it with the reference, and publish the report.",
    "run_night",
    needs=("root", "images"),
    keys=(
        *COMMON, *SCORING, "night", "catch_up", "shadow", "lookback", "retry_failed", *JUDGING, "webhook", "notify",
        "site_url", *FORECAST,
    ),
)  # fmt: skip
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
    needs=("root",),
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
    "Write a run's review queue, or what two runs call otherwise, as a file to label: CSV, Label Studio, FiftyOne.",
    "export_queue",
    needs=("root", "run"),
    keys=(*COMMON, "to", "output", "flips", "review_size", "sample"),
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
    needs=("root",),
    keys=(*COMMON, "source", "actors", "ray_address"),
    arguments=("file",),
    group=labels,
    job=False,
)


def _nights(config: Config) -> dict[str, Any]:
    found = [each.record() for each in drivetrain.list_nights(config)]
    return {"nights": found, "learners": drivetrain.learners_in_use(config)}


def _promote(
    config: Config, *, learner: str | None, scope: str | None, rollback: bool, withdraw: bool, despite_behaviour: bool
) -> dict[str, Any]:
    if [bool(learner), rollback, withdraw].count(True) != 1 or (not learner and (scope or despite_behaviour)):
        raise click.UsageError("Give a LEARNER (with --scope for a part first), or --rollback, or --withdraw.")
    if learner:
        return drivetrain.promote(config, learner, scope=scope, despite_behaviour=despite_behaviour)
    return drivetrain.roll_back(config) if rollback else drivetrain.withdraw(config)


@main.command(
    "promote",
    params=[
        click.Argument(["learner"], required=False),
        click.Option(["--scope"], help="Make it the challenger first, which scores this part beside the champion: a "
                     "share of the images, or a regular expression on the uri.  E.g. --scope 0.1"),
        click.Option(["--rollback"], is_flag=True, help="Make the champion before this one the champion again."),
        click.Option(["--withdraw"], is_flag=True, help="Take the challenger away."),
        click.Option(["--despite-behaviour"], is_flag=True, help="Promote a learner that fails its behaviour tests."),
        *_options((*COMMON, "source", "trust", "embedding")),
    ],
)  # fmt: skip
def promote(json_only: bool, **given: Any) -> None:
    """Make LEARNER, an id of a learner or a run or an export.pkl, the champion that scores a source's nights."""
    names = ("learner", "scope", "rollback", "withdraw", "despite_behaviour")
    own = {name: given.pop(name) for name in names}

    def work() -> int:
        config = _settings(given, ("root",))
        return _told(_promote(config, **own), config, json_only)

    _guarded(work)


_command(
    "notify",
    "Post a test message to the chat, or a night's message again.",
    "notify_chat",
    needs=(),
    keys=(*COMMON, "run", "webhook", "site_url"),
    options=[click.Option(["--test"], is_flag=True, help="Post a test message, and say what came back.")],
    job=False,
)
_command(
    "nights",
    "Show the nights: done, stale, running, dead, planned, and those that did not run; and who is champion.",
    _nights,
    needs=("root",),
    keys=(*COMMON, "source"),
    job=False,
)
_command(
    "gc",
    "Find what nobody refers to and is older than 7 days, and remove it with --delete.",
    "collect_garbage",
    needs=("root",),
    keys=(*COMMON, "run"),
    options=[click.Option(["--delete"], is_flag=True, help="Remove what is found; without it nothing is changed.")],
    job=False,
)


@main.command(
    "init",
    params=[
        *(_option(key) for key in Config.model_fields if key not in NOT_IN_A_FILE),
        click.Option(["--config", "file"], metavar="FILE", type=click.Path(), default="drivetrain.toml",
                     help="The file to write; one that is there is never overwritten.  Default: drivetrain.toml."
                     "  E.g. --config shop.toml"),
        _json_option(),
    ],
)  # fmt: skip
def init(file: str, json_only: bool, **given: Any) -> None:
    """Write a commented config file for a learner and its images."""

    def work() -> int:
        config = _settings(given | {"config_file": None}, ("learner", "images"))
        return _told(drivetrain.write_config(config, file), config, json_only)

    _guarded(work)


@main.command(
    "ui",
    params=[
        *_options(COMMON),
        click.Option(["--port"], default=8000, show_default=True, help="Port on this machine.  E.g. --port 8000"),
    ],
)
def ui(port: int, json_only: bool, **given: Any) -> None:
    """Serve Evidently's dashboard of all nights on this machine."""

    def work() -> int:
        config = _settings(given, ("root",))
        from drivetrain.report import serve
        from drivetrain.root import open_root

        store, layout = open_root(config, existing=True)
        # Before it is served, which lasts until somebody ends it.
        _told({"dashboard": f"http://127.0.0.1:{port}", "workspace": layout.workspace}, config, json_only)
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
@click.option("--json", "json_only", is_flag=True, help="Print one JSON object alone, of errors too.")
@click.argument("job", metavar="COMMAND [FLAGS]...", nargs=-1, type=click.UNPROCESSED, required=True)
@click.pass_context
def submit(
    context: click.Context, address: str | None, wait: bool, insecure: bool, json_only: bool, job: tuple[str, ...]
) -> None:
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
        # A job does not see this environment, so it stands for nothing here.
        config = _settings(given, JOBS[command], {})
        from drivetrain.submit import submit_command

        started = submit_command([*words, *flags], config, given["config_file"], address=address, insecure=insecure)
        about: dict[str, Any] = {"submission_id": started.id, "address": started.cluster.url}
        results: list[str] = []
        code = started.wait(tell=results.append) if wait else 0
        if results:
            _print(results[0])
        elif json_only or not wait:
            _print(json.dumps(about | ({"exit_code": code} if wait else {})))
        return code

    _guarded(work)


@main.command(
    "demo",
    params=[
        click.Option(["--root"], default="demo", show_default=True, type=click.Path(),
                     help="Folder or bucket prefix for the demo.  E.g. --root s3://b/demo"),
        click.Option(["--loop"], is_flag=True, help="Show the whole loop with two sources: label, retrain, compare, "
                     "promote, rescore."),
        _option("storage"),
        _json_option(),
    ],
)  # fmt: skip
def demo(root: str, loop: bool, storage: tuple[str, ...], json_only: bool) -> None:
    """Show two nights end to end on real digits: train, score, drift, retrain, rescore, compare."""

    def work() -> int:
        from drivetrain.demo import show
        from drivetrain.demo_loop import show_loop

        return _told((show_loop if loop else show)(root, parse_storage(storage) or {}), Config(), json_only)

    _guarded(work)


if __name__ == "__main__":
    main(prog_name="drivetrain")
