"""Fixtures that every test may ask for. Each server starts when the first test wants it and ends with the session."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from servers import RayCluster, S3Server, ray_head, s3_server

if TYPE_CHECKING:
    from learners import Exported

ACCESS_KEY = "drivetrain-tests"
SECRET_KEY = "not-a-secret"

# What a developer's own environment may hold, and what would send the tests to another store or another account.
FOREIGN = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION")

# More lines on stdout than that are no test's figures, but some library's talk.
MOST_LINES = 8


@pytest.fixture(scope="session")
def aws_environment() -> Iterator[None]:
    """The keys of the S3 server in the environment, for this process and all that it starts; taken back at the end."""
    with pytest.MonkeyPatch.context() as patch:
        for name in FOREIGN:
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        yield


@pytest.fixture(scope="session")
def digits_export(tmp_path_factory: pytest.TempPathFactory) -> "Exported":
    """A small learner of digits, trained for a moment: for tests to which its labels mean nothing."""
    # fastai takes seconds to import, and few tests need it.
    import learners

    folder = tmp_path_factory.mktemp("train")
    learners.write_digits(folder, 1000, 1300, by_label=True)
    return learners.exported(learners.digits_learner(folder, epochs=1), folder.parent / "digits_export.pkl")


@pytest.fixture(scope="session")
def s3(aws_environment: None) -> Iterator[S3Server]:
    """A real S3 server. Tests that use it are slow: it takes some seconds to start."""
    with s3_server(ACCESS_KEY, SECRET_KEY) as server:
        yield server


@pytest.fixture(scope="session")
def ray_cluster(aws_environment: None) -> Iterator[RayCluster]:
    """A real Ray head of 2 CPUs with token authentication; its workers see the keys of the S3 server."""
    with ray_head(cpus=2) as cluster:
        yield cluster


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the figures that tests print, which is all that they print, whatever process they ran in."""
    said = [
        (report.nodeid, report.capstdout.strip())
        for report in terminalreporter.getreports("passed")
        if report.when == "call" and report.capstdout.strip()
    ]
    figures = [(test, text) for test, text in said if len(text.splitlines()) <= MOST_LINES]
    if figures:
        terminalreporter.section("figures")
    for test, text in figures:
        terminalreporter.write_line(test)
        terminalreporter.write_line("    " + text.replace("\n", "\n    "))
