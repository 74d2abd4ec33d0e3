"""The WSGI application, for granian and any other WSGI server."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mlvdb_site.settings")

import django

django.setup(set_prefix=False)

from mlvdb_site.http.direct import NodeApplication

application = NodeApplication()
