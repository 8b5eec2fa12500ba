"""How a process of this project ends. The launcher, the ranks and the batch scripts use the same codes."""

DONE = 0
FAILURE = 1
USER_ERROR = 2  # the user can mend it: a config, a file, the environment
PREEMPTED = 75  # the ranks have stored where they are and stopped as asked; EX_TEMPFAIL of sysexits.h
INTERRUPTED = 130  # Ctrl-C
BY_SIGNAL = 128  # plus the number of the signal
