"""`ray job submit --working-dir . -- python jobs/nightly.py …`: the same as `drivetrain nightly …`."""

import sys

from drivetrain.cli import main

if __name__ == "__main__":
    main(["nightly", *sys.argv[1:]], prog_name="drivetrain")
