"""The settings of the tests: a node of their own in a temporary data dir, never `var/8000`.

Read before anything else of the project, because the data dir is settled when the site's settings are imported. Each
pytest process has its own. The database is an SQLite file in it, or with MLVDB_TEST_DATABASE_URL a new one beside the
one named there.
"""

import atexit
import os
import shutil
import tempfile

# The processes of pytest-xdist end without their exit functions: what they make is inside the first process's own.
_inside = os.environ.get("MLVDB_TEST_ROOT")
_data_dir = tempfile.mkdtemp(prefix="mlvdb-test-", dir=_inside)
_owner = os.getpid()
if not _inside:
    os.environ["MLVDB_TEST_ROOT"] = _data_dir
os.environ["MLVDB_DATA_DIR"] = _data_dir
# What the caller's shell says of another node or database is not for the tests.
for _name in ("DATABASE_URL", "MLVDB_BROKER_URL", "MLVDB_HOST", "MLVDB_PORT"):
    os.environ.pop(_name, None)
if os.environ.get("MLVDB_TEST_DATABASE_URL"):
    os.environ["DATABASE_URL"] = os.environ["MLVDB_TEST_DATABASE_URL"]


def _remove() -> None:
    # Forked children run their parent's exit functions too.
    if os.getpid() == _owner:
        shutil.rmtree(_data_dir, ignore_errors=True)


atexit.register(_remove)

from mlvdb_site.settings import *  # noqa: F403

# Nothing slower than it must be: the users of the tests are worth no strong hash.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
