"""Django settings of a node; everything an operator may change is in `settings_table`."""

from __future__ import annotations

import os

# Every process of a node computes with one BLAS thread: the worker processes carry the load (see vectors/DESIGN.md).
for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
# Index builds use more than one: where the processors are busy, threads that spin while they wait for one another make
# a build several times longer.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import dj_database_url

from mlvdb_site import node as _node
from mlvdb_site.logging_config import logging_settings
from mlvdb_site.settings_table import read_all

_values = read_all()
globals().update(_values)

NODE_FILES = _node.node_files(_values["MLVDB_DATA_DIR"])
NODE_FILES.create()
SECRET_KEY = _node.secret_key(NODE_FILES)
MLVDB_NODE_ID = _node.node_id(NODE_FILES)

BASE_DIR = _node.BASE_DIR
DEBUG = False
ALLOWED_HOSTS = list(_values["MLVDB_ALLOWED_HOSTS"])
APPEND_SLASH = True
ROOT_URLCONF = "mlvdb_site.urls"
WSGI_APPLICATION = "mlvdb_site.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"

INSTALLED_APPS = [
    "mlvdb_site.apps.SiteConfig",
    "mlvdb_site.apps.AdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "django_celery_beat",
    "vectors.apps.VectorsConfig",
    "cluster.apps.ClusterConfig",
]

# A program's request passes the page middlewares by: see mlvdb_site.http.pages.
MIDDLEWARE = [
    "mlvdb_site.http.request_id.RequestIdMiddleware",
    "mlvdb_site.http.metrics.MetricsMiddleware",
    "mlvdb_site.http.access.AccessMiddleware",
    "mlvdb_site.http.pages.PlainMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "mlvdb_site.http.pages.PageSecurityMiddleware",
    "mlvdb_site.http.pages.PageSessionMiddleware",
    "mlvdb_site.http.pages.PageCommonMiddleware",
    "mlvdb_site.http.pages.PageCsrfMiddleware",
    "mlvdb_site.http.pages.PageAuthenticationMiddleware",
    "mlvdb_site.http.pages.PageMessageMiddleware",
    "mlvdb_site.http.pages.PageFrameMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "mlvdb_site" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

if _values["DATABASE_URL"]:
    DATABASES = {
        "default": dj_database_url.parse(
            _values["DATABASE_URL"], engine="mlvdb_site.postgres", conn_max_age=None, conn_health_checks=True
        )
    }
else:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(NODE_FILES.database),
            "CONN_MAX_AGE": None,
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "timeout": _values["MLVDB_DATABASE_TIMEOUT_S"],
                "init_command": (
                    "PRAGMA journal_mode=WAL;"
                    f"PRAGMA synchronous={'FULL' if _values['MLVDB_DURABILITY'] == 'fsync' else 'NORMAL'};"
                    "PRAGMA foreign_keys=ON;"
                    # Each request thread has a connection; what they read is the newest log, once. 2 MB of pages each
                    # (the default) would be memory that no one looks at again.
                    "PRAGMA cache_size=-512;"
                ),
            },
        }
    }

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

# Several nodes on one host share its cookies: the node's id in the names keeps their sessions apart.
SESSION_COOKIE_NAME = f"sessionid_{MLVDB_NODE_ID[:12]}"
CSRF_COOKIE_NAME = f"csrftoken_{MLVDB_NODE_ID[:12]}"
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
CSRF_FAILURE_VIEW = "mlvdb_site.http.access.csrf_failure"
LOGIN_URL = "admin:login"
X_FRAME_OPTIONS = "SAMEORIGIN"
SECURE_CONTENT_TYPE_NOSNIFF = True

STATIC_URL = "/static/"
STATIC_ROOT = BASE_DIR / "var" / "static"
STATICFILES_DIRS = [BASE_DIR / "mlvdb_site" / "static"]

DATA_UPLOAD_MAX_MEMORY_SIZE = _values["MLVDB_MAX_BODY_BYTES"]

# The API (mlvdb_site.http): access is settled by middleware, bodies are bounded by their parsers.
REST_FRAMEWORK = {
    "DEFAULT_RENDERER_CLASSES": [
        "mlvdb_site.http.renderers.JSONRenderer",
        "mlvdb_site.http.renderers.MsgpackRenderer",
        "mlvdb_site.http.browsable.PageRenderer",
    ],
    "DEFAULT_PARSER_CLASSES": ["mlvdb_site.http.parsers.JSONParser", "mlvdb_site.http.parsers.MsgpackParser"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "mlvdb_site.http.negotiation.NodeNegotiation",
    "DEFAULT_AUTHENTICATION_CLASSES": ["mlvdb_site.http.authentication.SiteAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": [],
    "DEFAULT_THROTTLE_CLASSES": [],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "mlvdb_site.http.errors.exception_handler",
    "URL_FORMAT_OVERRIDE": "format",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "MLVectorDB",
    "DESCRIPTION": "Vectors with metadata, searched by similarity.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": [],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "persistAuthorization": True, "validatorUrl": None},
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "PREPROCESSING_HOOKS": [
        "mlvdb_site.http.documentation.document",
        "vectors.api.documentation.document",
        "cluster.api.documentation.document",
    ],
    "POSTPROCESSING_HOOKS": ["mlvdb_site.http.openapi.complete"],
}

# Logging
LOGGING = logging_settings(_values["MLVDB_LOG_LEVEL"])

# Background tasks (mlvdb_site.celery); the admin of the periodic tasks reads the scheduler from here.
CELERY_BEAT_SCHEDULER = "mlvdb_site.beat:LeasedScheduler"
