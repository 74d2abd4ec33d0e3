"""The paths of a node. No API path ends with a slash, and none is redirected to one; the admin keeps Django's."""

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from mlvdb_site.http.health import AliveView, HealthView, LogLevelView, MetricsView, ReadyView
from mlvdb_site.http.root import ApiRootView

urlpatterns = [
    # First, because paths are tried in order and these are the busy ones.
    path("", include("vectors.api.urls")),
    path("", ApiRootView.as_view(), name="root"),
    path("health", HealthView.as_view(), name="health"),
    path("healthz", AliveView.as_view(), name="alive"),
    path("readyz", ReadyView.as_view(), name="ready"),
    path("metrics", MetricsView.as_view(), name="metrics"),
    path("log/level", LogLevelView.as_view(), name="log-level"),
    path("admin", RedirectView.as_view(url="/admin/", query_string=True)),
    path("admin/", admin.site.urls),
    path("", include("mlvdb_site.http.schema")),
    path("", include("cluster.api.urls")),
]

handler400 = "mlvdb_site.http.errors.bad_request"
handler403 = "mlvdb_site.http.errors.permission_denied"
handler404 = "mlvdb_site.http.errors.not_found"
handler500 = "mlvdb_site.http.errors.server_error"
