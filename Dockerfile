# syntax=docker/dockerfile:1
# The gateway: one image for the API, the worker, beat and `flask …`.
#
# The base is pinned to Python's minor version and Debian's release, and the image is built each week
# (.github/workflows/image.yml): a tag pinned to a patch version would miss Debian's fixes.

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
# The requirements come first: they change less often than the code, so this layer is reused.
COPY requirements.txt /tmp/requirements.txt
# The file pins all packages, so pip resolves nothing more; it refuses a file with another hash.
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps --require-hashes --requirement /tmp/requirements.txt \
    && /opt/venv/bin/pip check \
    # Nothing may be installed later.
    && /opt/venv/bin/pip uninstall --yes pip setuptools
COPY payments_app /app/payments_app
COPY migrations /app/migrations
COPY wsgi.py celery_worker.py gunicorn.conf.py /app/
# Compile now, because the file system is read-only at run time.
RUN /opt/venv/bin/python -m compileall -q /app


FROM python:3.11-slim-bookworm AS runtime
# The user is a number, so that Kubernetes can check that it is not root.
RUN groupadd --gid 10001 maramoja \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin maramoja
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
USER 10001:10001


# The provider simulator, for trying out the gateway: docker build --target simulator
FROM runtime AS simulator
COPY simulator /app/simulator
EXPOSE 9010
CMD ["python", "-m", "simulator", "--host", "0.0.0.0", "--port", "9010"]


# Backup and restore: PostgreSQL's own programs, which must not be older than the server, and our scripts.
# docker build --target backup
FROM postgres:18-bookworm AS backup
RUN groupadd --gid 10001 maramoja \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin maramoja
COPY deploy/backup /usr/local/lib/maramoja-backup
ENV PATH=/usr/local/lib/maramoja-backup:$PATH
WORKDIR /backups
USER 10001:10001
# Removes the image's entrypoint, which would start a server.
ENTRYPOINT []
CMD ["scheduled.sh", "/backups"]


# The last target, so that `docker build .` builds it.
FROM runtime AS gateway
COPY --from=build /app /app
EXPOSE 8000
# For the API; worker and beat are checked at their own ports (docker-compose.yml, deploy/kubernetes).
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/live', timeout=2)"]
CMD ["gunicorn", "wsgi:app"]
# At the end, so that a new revision rebuilds no layer above.
ARG VERSION=local
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Maramoja" \
    org.opencontainers.image.description="A self-hosted, multi-tenant mobile-money payments gateway that charges once." \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
