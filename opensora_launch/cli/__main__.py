"""`python -m opensora_launch.cli`, where the command is not on the path."""

import sys

from opensora_launch.cli import main

sys.exit(main())
