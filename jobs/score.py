"""`ray job submit --working-dir . -- python jobs/score.py …`: the same as `drivetrain score …`."""

import sys

from drivetrain.cli import main

if __name__ == "__main__":
    main(["score", *sys.argv[1:]], prog_name="drivetrain")
