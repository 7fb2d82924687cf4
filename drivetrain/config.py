"""The one strict, typed object that holds every setting; a TOML file, the environment, flags, or keywords make it.

Knows each key, its meaning and its example (`drivetrain X --help` prints them). Does not know what a key is used for.
A flag wins over the environment (DRIVETRAIN_ROOT for ``root``), and that over the file. A key that does not exist is an
error that names the nearest one. A secret in a uri or in the file is refused:
credentials come from the environment or the instance profile. A webhook's url is a secret as a whole: it comes from
the environment or a flag, and is shown nowhere.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from drivetrain.errors import SettingError

# Before the name of a key, in capitals.
ENVIRONMENT = "DRIVETRAIN_"
WEBHOOK = f"{ENVIRONMENT}WEBHOOK"
# Keys that `init` writes no value of, and why.
NOT_IN_A_FILE = {
    "webhook": f"a secret, which a file must not hold: export {WEBHOOK}=…",
    "dry_run": "a flag: in a file it would keep every command from its work",
}
# What no output may hold, should a library ever say it.
SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", WEBHOOK)
SHORTEST_SECRET = 8

Options = dict[str, dict[str, str | int | float | bool]]

_SECRET_KEY = re.compile(
    r"secret|password|passwd|token|credential|connection_string|account_key|sas|^key$|access_key", re.IGNORECASE
)
_SECRET_QUERY = re.compile(r"[?&](X-Amz-Signature|Signature|sig|token|sv)=", re.IGNORECASE)
_USER_INFO = re.compile(r"://[^/\s@]+@")
_NIGHT = re.compile(r"\{night(?::[^}]*)?\}")


def _key(default: Any, text: str, example: str) -> Any:
    return Field(default=default, description=text, examples=[example])


class Config(BaseModel):
    """Every setting of drivetrain. Keys of the TOML file and flags bear the same names (flags with hyphens)."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    root: str | None = _key(None, "Folder or bucket prefix that drivetrain writes to.", "s3://my-bucket/drivetrain")
    learner: str | None = _key(None, "The export.pkl that learn.export() wrote.", "s3://my-bucket/models/export.pkl")
    trust: tuple[str, ...] = _key(
        (), "sha256 of an export.pkl that you vouch for (loading it runs its code). May be repeated.", "9f86d08…"
    )
    images: str | None = _key(
        None,
        "Prefix of the images. {night:%Y/%m/%d} stands for the night's date; without it the prefix is one that grows.",
        "s3://my-bucket/incoming/{night:%Y/%m/%d}",
    )
    source: str | None = _key(None, "Name of this stream of images; by default made from the prefix.", "shop")
    name: str | None = _key(
        None, "score: name of the plan; by default the night of a dated prefix, else today.", "backfill-2026"
    )
    night: date | None = _key(None, "The UTC day to score; by default the last complete one.", "2026-11-23")
    run: str | None = _key(
        None,
        "Id of a committed run. gc: of an unfinished one that is removed too.",
        "shop-2026-11-23-3fa9c1d2-9b1e22aa",
    )
    nights: str | None = _key(
        None, "rescore: all scored nights of the source from the first to the last of two dates.",
        "2026-11-01..2026-11-23",
    )  # fmt: skip
    all: bool = _key(False, "rescore: all scored nights of the source, and what score scored of it.", "")
    reprocess: Literal["missing", "failed", "all"] = _key(
        "missing",
        "rescore: what is done again beside what the learner has not scored yet: missing, nothing; failed, the failed "
        "images of its runs, as with --retry-failed; all, those, and every comparison and verdict is made anew.",
        "failed",
    )
    full: bool = _key(False, "rescore: read the images even where stored embeddings could go through the new head.", "")
    labels: str | None = _key(
        None,
        "reference, rescore: CSV with fname, label, is_valid, written from dls before the export.",
        "labels.csv",
    )
    actors: int | None = _key(
        None,
        "Ray actors that score; by default as many as the cluster has CPUs for, or GPUs, also on nodes that join. "
        "0 scores in this process.",
        "8",
    )
    gpus_per_actor: float = _key(0.0, "GPUs that each actor takes.", "1")
    ray_address: str | None = _key(
        None, "Ray cluster to use; by default RAY_ADDRESS, else a new one on this machine.", "auto"
    )
    batch_size: int = _key(64, "Images that are read together, and on a GPU one pass of the network.", "64")
    embedding: str = _key(
        "head",
        "What is stored of each image: head, what enters the head of the network; the name of a layer, what enters "
        "that (learner inspect lists them); none, which saves space and gives up drift.",
        "head",
    )
    engine: Literal["auto", "torch", "openvino", "int8"] = _key(
        "auto",
        "What computes the network: openvino, faster on CPUs; torch; auto takes openvino where it proves on "
        "real images that it gives the same; int8 is faster still, labels of a few images differ, and embeddings are "
        "others, so it needs a reference of its own (to make it: pip install 'drivetrain[int8]').",
        "torch",
    )
    precision: Literal["float32", "float16"] = _key(
        "float32",
        "float16 lets GPUs compute in half precision (autocast): faster, and probabilities differ.",
        "float16",
    )
    max_pixels: int = _key(
        64_000_000, "Images with more pixels get an error row instead of filling memory.", "64000000"
    )
    max_failed: float = _key(0.01, "Share of failed images above which a run ends with exit code 3.", "0.01")
    retry_failed: bool = _key(
        False, "score, nightly: score the failed images of the committed run again, and keep its other rows.", ""
    )
    catch_up: bool = _key(
        False, "nightly: fill the nights up to this one that did not run or did not end, oldest first.", ""
    )
    shadow: str | None = _key(
        None,
        "nightly: score the night's images with this learner too, beside the champion, and compare: an id of a learner "
        "in the root, or an export.pkl.",
        "s3://my-bucket/models/new.pkl",
    )
    lookback: int = _key(1, "Days back to look for images that arrived late in a dated prefix.", "2")
    alarms_per_year: float = _key(
        1.0, "False alarms that are acceptable in a year, of all sources under the root together.", "2"
    )
    group_by: str | None = _key(
        None,
        "What images belong together: a regular expression on the uri (its first group), or a column's name. Without "
        "it near-duplicates are found and taken together.",
        "'(camera-[0-9]+)/'",
    )
    effect_floor: float = _key(
        0.55,
        "Smallest effect worth an alarm: how often tonight's image, of a pair with one of the reference, is told "
        "to be tonight's. 0.5 is chance, 1 is always.",
        "0.6",
    )
    min_images: int = _key(100, "Fewer scored images than this in a night, and the verdict is unknown.", "100")
    review_size: int = _key(100, "Images in the review queue, and of queue --flips.", "100")
    behaviour_images: int = _key(200, "behave: images of the reference that are changed and looked at again.", "500")
    cases: str | None = _key(
        None,
        "behave: folder of images with the label that each must get, by its subfolder or by a labels.csv (fname,label) "
        "in it. One that gets another label fails the learner.",
        "s3://my-bucket/cases",
    )
    to: Literal["csv", "labelstudio", "fiftyone"] = _key("csv", "queue: form of the file.", "labelstudio")
    output: str | None = _key(
        None, "queue: file to write; by default queue-RUN.csv (or .json) in the working directory.", "queue.csv"
    )
    flips: str | None = _key(
        None,
        "queue: id of another run over the same images: those whose label the two runs don't share, instead of those "
        "that moved. Only their labels can tell two learners apart.",
        "shop-2026-11-23-3fa9c1d2-9b1e22aa",
    )
    sample: int = _key(
        0,
        "queue: images drawn at random to be labelled as well: their labels tell the night's accuracy, those of images "
        "that moved do not.",
        "100",
    )
    seed: int = _key(0, "Seed of every random choice in the statistics.", "0")
    evidently_embeddings: bool = _key(
        False, "Add Evidently's own EmbeddingsDrift to the report, on 500 images a side; it decides nothing.", ""
    )
    webhook: SecretStr | None = _key(
        None,
        "Where nightly tells what changed: a chat's address, as Slack's incoming webhooks take it. The address is a "
        "secret: put it into DRIVETRAIN_WEBHOOK, where no list of processes shows it; the config file refuses it.",
        "https://hooks.example.org/T0/B0/…",
    )
    notify: Literal["changes", "all"] = _key(
        "changes",
        "What the chat is told: changes (drift, that it lasts and when it is over, what keeps a night from a "
        "verdict), or all nights.",
        "all",
    )
    site_url: str | None = _key(
        None,
        "Where people and the chat reach the root with a browser; messages then link to the report and, over https, "
        "show thumbnails, which are stored for that beside the report.",
        "https://drivetrain.example.org",
    )
    dry_run: bool = _key(
        False,
        "score, rescore, nightly: say what would be scored and about how long it takes, from a probe of 64 images on "
        "the same actors, and write nothing.",
        "",
    )
    price_per_hour: float | None = _key(
        None, "What the whole cluster costs an hour, in any currency: a dry run then says what the work costs.", "3.20"
    )
    fail_on_drift: bool = _key(False, "End with exit code 4 when the verdict is drift.", "")
    storage: Options = _key({}, "fsspec options by protocol, no secrets.", "s3.endpoint_url=http://127.0.0.1:8333")

    @field_validator("root", "learner", "images", "labels", "shadow", "cases", "output")
    @classmethod
    def _no_secret_in_uri(cls, uri: str | None) -> str | None:
        if uri is None:
            return None
        if _carries_secret(uri):
            raise ValueError("a uri that carries a secret is refused: put credentials into the environment")
        if not uri.strip():
            raise ValueError("is empty")
        return uri

    @field_validator("images")
    @classmethod
    def _night_template(cls, images: str | None) -> str | None:
        rest = _NIGHT.sub("", images or "")
        if "{night" in rest or re.search(r"\{[^}]*%[^}]*\}", rest):
            raise ValueError("has braces that are no template; expected e.g. {night:%Y/%m/%d} or {night}")
        return images

    @field_validator("trust", mode="before")
    @classmethod
    def _one_hash(cls, hashes: Any) -> Any:
        return (hashes,) if isinstance(hashes, str) else hashes

    @field_validator("trust")
    @classmethod
    def _sha256(cls, hashes: tuple[str, ...]) -> tuple[str, ...]:
        for value in hashes:
            if not re.fullmatch(r"[0-9a-f]{64}", value):
                raise ValueError("is no sha256: expected 64 characters 0-9 a-f, the output of `sha256sum export.pkl`")
        return hashes

    @field_validator("storage")
    @classmethod
    def _no_secret_in_storage(cls, storage: Options) -> Options:
        for protocol, options in storage.items():
            for key, value in options.items():
                if _SECRET_KEY.search(key) or _carries_secret(str(value)):
                    raise ValueError(
                        f"{protocol}.{key} looks like a secret, which a config must not hold: "
                        "use AWS_ACCESS_KEY_ID and the like, or an instance profile"
                    )
        return storage

    @field_validator("webhook")
    @classmethod
    def _web_address(cls, webhook: SecretStr | None) -> SecretStr | None:
        if webhook and not webhook.get_secret_value().startswith(("https://", "http://")):
            raise ValueError("must begin with https:// or http://")
        return webhook

    @field_validator("site_url")
    @classmethod
    def _web_prefix(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if _carries_secret(url):
            raise ValueError("a url that carries a secret is refused: it stands in every message")
        if not re.fullmatch(r"https?://[!#-;=?-\[\]_a-z~]{1,500}", url) or "?" in url or "#" in url:
            raise ValueError("must be the beginning of web addresses, with neither ? nor #: https://host/folder")
        return url.rstrip("/")

    @field_validator("source", "name")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
            raise ValueError(
                "must be 1 to 64 letters, digits, dots, hyphens or underscores, and start with a letter or digit"
            )
        return value

    @field_validator("nights")
    @classmethod
    def _range(cls, value: str | None) -> str | None:
        if value is not None:
            first, last = _two_days(value)
            if first > last:
                raise ValueError(f"the first night comes after the last; expected {last}..{first}")
        return value

    @field_validator("embedding")
    @classmethod
    def _layer_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_.]{1,100}", value):
            raise ValueError("must be head, none, or a layer's name such as 0.7.1")
        return value

    @field_validator("max_failed", "effect_floor")
    @classmethod
    def _share(cls, value: float) -> float:
        if not 0 <= value <= 1:
            raise ValueError(f"must lie between 0 and 1, found {value}")
        return value

    @field_validator("alarms_per_year")
    @classmethod
    def _some_alarms(cls, value: float) -> float:
        if not 0 < value <= 365:
            raise ValueError(f"must be more than 0 and at most 365, found {value}: a monitor that may never be wrong "
                             "can never alarm")  # fmt: skip
        return value

    @field_validator("group_by")
    @classmethod
    def _regular(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        return value

    @field_validator("actors", "lookback", "gpus_per_actor", "sample", "price_per_hour")
    @classmethod
    def _not_negative(cls, value: float | None) -> float | None:
        if value is not None and not 0 <= value < float("inf"):
            raise ValueError(f"must be 0 or more, found {value}")
        return value

    @field_validator("batch_size", "max_pixels", "min_images", "review_size", "behaviour_images")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value < 1:
            raise ValueError(f"must be 1 or more, found {value}")
        return value

    @classmethod
    def load(
        cls, file: str | Path | None = None, environment: Mapping[str, str] | None = None, /, **flags: Any
    ) -> Self:
        """Make a Config from a TOML file, the environment and flags; the later ones win, a flag that is None does not.

        ``environment``: this process' own unless another is given; {} for none.
        Raises SettingError for a file that can't be read, an unknown key or variable (the nearest one is named) or a
        bad value.
        """
        values = _of_file(file) if file is not None else {}
        where = dict.fromkeys(values, f" in {file}")
        for name, value in _of_environment(os.environ if environment is None else environment).items():
            key = _key_of(name)
            values[key], where[key] = value, f" in {name}"
        for key in (given := {key: value for key, value in flags.items() if value is not None}):
            if key not in cls.model_fields:
                raise SettingError(f"Unknown key {key!r}. {nearest(key, cls.model_fields)}")
            where[key] = ""
        try:
            return cls(**values | given)
        except ValidationError as error:
            raise SettingError(_plain(error, where)) from error

    def need(self, *keys: str) -> list[str]:
        """The values of keys that a command can't do without, as text.

        Raises SettingError that names the flag and the config key of the first one missing.
        """
        for key in keys:
            if getattr(self, key) is None:
                example = (type(self).model_fields[key].examples or [""])[0]
                flag = "--" + key.replace("_", "-")
                raise SettingError(
                    f"Missing: {type(self).model_fields[key].description}\n"
                    f"Add {flag} {example}   or   {key} = {str(example)!r}   in the config file."
                )
        return [str(getattr(self, key)) for key in keys]

    def the_webhook(self) -> str | None:
        """Where the verdict is posted: the flag, else DRIVETRAIN_WEBHOOK, else nowhere. A secret: not to be shown."""
        return (os.environ.get(WEBHOOK) if self.webhook is None else self.webhook.get_secret_value()) or None

    def the_night(self) -> date:
        """The night to work on: the one asked for, else yesterday in UTC, the last complete day."""
        return self.night or datetime.now(UTC).date() - timedelta(days=1)

    def the_nights(self) -> tuple[date, date]:
        """The first and the last night to rescore; without ``nights`` all that there can be."""
        return _two_days(self.nights) if self.nights else (date.min, date.max)

    def the_source(self) -> str:
        """The source's name: the one given, else made from the images' prefix. Raises SettingError without either."""
        if self.source:
            return self.source
        if self.images is None:
            self.need("source")
        (images,) = self.need("images")
        words = re.findall(r"[A-Za-z0-9]+", _NIGHT.sub("", images.split("://")[-1]))
        return "-".join(words[-2:])[:64] or "images"

    @property
    def dated(self) -> bool:
        """Whether the images' prefix holds the night's date."""
        return bool(_NIGHT.search(self.images or ""))

    def images_of(self, night: date) -> str:
        """The images' prefix for one night."""
        (images,) = self.need("images")
        try:
            return images.format(night=night) if self.dated else images
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            raise SettingError(
                f"images = {images!r} can't be filled in for {night}: {error}. Expected e.g. …/{{night:%Y/%m/%d}}"
            ) from error


def _two_days(text: str) -> tuple[date, date]:
    first, dots, last = text.partition("..")
    try:
        if dots:
            return date.fromisoformat(first), date.fromisoformat(last)
    except ValueError:
        pass
    raise ValueError(f"expected two dates such as 2026-11-01..2026-11-23, found {text!r}")


def _of_file(file: str | Path) -> dict[str, Any]:
    """What a config file sets. Raises SettingError."""
    try:
        values = tomllib.loads(Path(file).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"The config file {file} can't be read: {error}") from error
    for key in values:
        if key not in Config.model_fields:
            raise SettingError(f"Unknown key {key!r} in {file}. {nearest(key, Config.model_fields)}")
    if "webhook" in values:
        raise SettingError(
            f"webhook in {file}: whoever reads that address can post to your chat; a config file must not hold it.\n"
            f"Put it into the environment: export {WEBHOOK}=…"
        )
    return values


def _of_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """What the environment sets, by the variable's name; an empty variable sets nothing. Raises SettingError.

    Lists are words with spaces or commas between them, storage is words like ``s3.anon=true``. Not the webhook, which
    is read when it is needed: no setting that is shown or sent somewhere holds it.
    """
    values: dict[str, Any] = {}
    for name in sorted(environment):
        if not name.startswith(ENVIRONMENT) or name == WEBHOOK:
            continue
        if _key_of(name) not in Config.model_fields or name != name.upper():
            known = {f"{ENVIRONMENT}{key.upper()}": key for key in Config.model_fields}
            raise SettingError(f"Unknown variable {name} in the environment. {nearest(name.upper(), known)}")
        value = environment[name].strip()
        if value and _key_of(name) == "storage":
            values[name] = parse_storage(tuple(value.split()), name)
        elif value:
            values[name] = tuple(re.split(r"[\s,]+", value)) if _key_of(name) == "trust" else value
    return values


def _key_of(name: str) -> str:
    """The key that a variable of the environment sets."""
    return name.removeprefix(ENVIRONMENT).lower()


def _carries_secret(uri: str) -> bool:
    return "://" in uri and ("@" in urlsplit(uri).netloc or bool(_SECRET_QUERY.search(uri)))


def without_secrets(text: str) -> str:
    """A text that others made, without the secrets of this process' environment and without those inside urls."""
    for name in SECRETS:
        secret = os.environ.get(name, "")
        # Shorter ones are no secrets, and stand in many a word.
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, "…")
    return _USER_INFO.sub("://…@", text)


def nearest(word: str, known: Mapping[str, Any]) -> str:
    """A sentence that names the known word nearest to one that is not known."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."


def parse_storage(pairs: tuple[str, ...], where: str = "--storage") -> Options | None:
    """Turn flags like ``s3.endpoint_url=http://127.0.0.1:8333`` into fsspec options by protocol."""
    options: Options = {}
    for pair in pairs:
        match = re.fullmatch(r"([a-z0-9]+)\.([a-z_]+)=(.*)", pair)
        if not match:
            # Without what was given: any part of it may be a secret.
            raise SettingError(f"{where}: expected PROTOCOL.OPTION=VALUE, e.g. s3.endpoint_url=http://…")
        protocol, key, value = match.groups()
        options.setdefault(protocol, {})[key] = {"true": True, "false": False}.get(value, value)
    return options or None


def _plain(error: ValidationError, where: Mapping[str, str]) -> str:
    """Every bad value in a line: its key, where it was found, and what was expected."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        said = problem["msg"].removeprefix("Value error, ")
        example = _example_of(str(problem["loc"][0])) if problem["type"] != "value_error" else ""
        lines.append(f"{key}{where.get(key.split('.')[0], '')}: {said[0].lower() + said[1:]}{example}")
    return "\n".join(lines)


def _example_of(key: str) -> str:
    field = Config.model_fields.get(key)
    return f"; expected e.g. {field.examples[0]}" if field and field.examples and field.examples[0] else ""
