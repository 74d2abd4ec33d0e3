"""The site of a node: settings, URLs, access, admin site, Celery, and the HTTP plumbing that the apps share.

Nothing of Celery is imported here: a web worker pays for Celery only when it first publishes a task.
`celery -A mlvdb_site` finds the application in `mlvdb_site.celery`.
"""

import time

__version__ = "0.1.0"

#: When this process, or the one it was forked from, began (monotonic clock).
STARTED_AT = time.monotonic()
