"""Real clients that work on a redis server while it is moved, and check every answer.

Each client is a process of its own (``python -m netlab.load CLIENT ...``): so it can be started in
a client's network namespace, and does not share an interpreter with what it measures. All of them
keep to one contract:

* A client never reconnects. An error or an end of stream is a lost connection, and is reported.
* It has no timeout of its own: a long freeze is a long wait, not a failure. ``--seconds`` bounds
  its whole life; a request that is still unanswered at the very end counts as a lost connection.
* On standard output it prints a line ``{"state": "ready"}`` once all its connections have got an
  answer, and as its last line one JSON object, its summary (`netlab.load.summary`).
* SIGTERM, SIGINT, the end of its standard input (with ``--stdin-stops``) or ``--seconds`` end it.
* Samples go to a file (`netlab.load.samples`). Times are CLOCK_MONOTONIC seconds: comparable
  between all processes of a machine.

`netlab.load.process.LoadProcess` is the other side of the contract, for the lab.
"""
