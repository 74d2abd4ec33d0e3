"""The processes of one node: what `manage.py serve` starts, watches, restarts and ends.

    supervisor   starts the children in one process group, restarts what dies, ends all in order
    children     what each child is: its command line and environment
    forking      children that share the memory of what the supervisor has loaded (Linux)
    broker       the private Redis or Valkey
    program      the background processes of a program that is a node itself
    web          granian's main process, from which the web workers are forked
    background   Celery workers and beat
    lifeline     nobody outlives the process that started it (`keeper`: programs that are not ours)
    output       the children's lines: to log files, and what matters to the terminal
    record       the lock and the record that say which `serve` runs a node
    preparation  database, static files, first user: everything a start may have to do
    checkpoints  due checkpoints while the broker is down
    listener     the listening socket, held by the supervisor while web servers come and go
    readiness    waits for a node that is starting
    serving      one node from its start to its end
    reloading    notices changed code

Nothing here knows of vectors or of other nodes beyond the few services named in `preparation` and `checkpoints`.
"""
