"""The WSGI application, for granian and any other WSGI server."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mlvdb_site.settings")

from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()
