"""`python -m opensora_launch.worker`: one rank, started by torchrun, by the launcher, or by hand."""

import sys

from opensora_launch.machine.output import secure_output
from opensora_launch.machine.processes import end_without_teardown
from opensora_launch.worker import main

secure_output()
end_without_teardown(main(sys.argv[1:]))
